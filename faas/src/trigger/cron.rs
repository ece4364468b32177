//! Calls by time.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use k8s_openapi::jiff::tz::TimeZone;
use skiff_core::cron::{self, Schedule};

use super::{Occasion, Of};
use crate::api::{Cron, TriggerStatus};

/// Longest sleep: somebody may set the clock.
const NAP: Duration = Duration::from_secs(600);
/// Missed times that are counted through; beyond that the search begins anew from a day ago.
const MISSED_MAX: usize = 10_000;

pub(super) async fn run(of: &Of, spec: &Cron, mut known: TriggerStatus) {
    let (schedule, zone) = match read(spec) {
        Ok(read) => read,
        // It stays so until the function is changed.
        Err(why) => return of.fault(&mut known, why).await,
    };
    let body = spec.body.clone().unwrap_or_else(|| "{}".to_owned());
    loop {
        let from = known.last_time.as_ref().max(known.since.as_ref()).map_or_else(Timestamp::now, |t| t.0);
        let now = Timestamp::now();
        let Some(at) = due(&schedule, &zone, from, now) else {
            return of.fault(&mut known, format!("the schedule {:?} never comes", spec.schedule)).await;
        };
        if at > now {
            tokio::time::sleep(at.duration_since(now).unsigned_abs().min(NAP)).await;
            continue;
        }
        let told = of.tell(Occasion {
            id: at.to_string(),
            kind: "cron".into(),
            subject: None,
            time: at,
            body: body.clone().into_bytes(),
        });
        known.message = told.await.err();
        known.last_time = Some(Time(at));
        of.report(&known).await;
    }
}

fn read(spec: &Cron) -> Result<(Schedule, TimeZone), String> {
    let name = spec.time_zone.as_deref().unwrap_or("UTC");
    let zone = cron::zone(name).ok_or_else(|| format!("unknown time zone {name:?}"))?;
    let schedule =
        Schedule::parse(&spec.schedule).map_err(|e| format!("unparseable schedule {:?}: {e}", spec.schedule))?;
    Ok((schedule, zone))
}

/// The last time after `from` that is not after `now`; if there is none, the next one.
fn due(schedule: &Schedule, zone: &TimeZone, from: Timestamp, now: Timestamp) -> Option<Timestamp> {
    let mut at = schedule.next(from, zone)?;
    let mut steps = 0;
    while let Some(next) = schedule.next(at, zone).filter(|t| *t <= now) {
        at = next;
        steps += 1;
        if steps == MISSED_MAX {
            // So many in less than a day come every few seconds: the last but few does as well.
            let day_ago = now - Duration::from_secs(86_400);
            return Some(if at < day_ago { schedule.next(day_ago, zone)?.min(now) } else { at });
        }
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_missed_times_the_last_is_due() {
        let hourly = Schedule::parse("0 * * * *").unwrap();
        let t = |text: &str| text.parse::<Timestamp>().unwrap();
        let cases = [
            ("2026-01-01T10:30:00Z", "2026-01-01T10:40:00Z", "2026-01-01T11:00:00Z"),
            ("2026-01-01T10:30:00Z", "2026-01-01T11:00:00Z", "2026-01-01T11:00:00Z"),
            ("2026-01-01T10:00:00Z", "2026-01-01T15:59:00Z", "2026-01-01T15:00:00Z"),
            ("2026-01-01T10:00:00Z", "2026-03-01T00:30:00Z", "2026-03-01T00:00:00Z"),
        ];
        for (from, now, at) in cases {
            assert_eq!(due(&hourly, &TimeZone::UTC, t(from), t(now)), Some(t(at)), "{from} {now}");
        }
        // Years of minutes end.
        let minutely = Schedule::parse("* * * * *").unwrap();
        let at = due(&minutely, &TimeZone::UTC, t("2020-01-01T00:00:00Z"), t("2026-01-01T00:00:00Z")).unwrap();
        assert!(at > t("2025-12-30T23:00:00Z") && at <= t("2026-01-01T00:00:00Z"), "{at}");
    }

    #[test]
    fn faults_are_told() {
        let spec = |schedule: &str, zone: Option<&str>| Cron {
            schedule: schedule.into(),
            time_zone: zone.map(Into::into),
            body: None,
        };
        assert!(read(&spec("* * *", None)).err().unwrap().contains("unparseable schedule"));
        assert!(read(&spec("* * * * *", Some("Mars/Base"))).err().unwrap().contains("unknown time zone"));
        assert!(read(&spec("*/5 * * * *", Some("Europe/Berlin"))).is_ok());
    }
}

//! Which addresses LoadBalancer Services get: the nodes', or ones of a range. No I/O.
//!
//! An address of a range belongs to one Service. Who holds what is read from the Services' statuses and kept nowhere
//! else, so nothing can leak; where two hold one address (a backup was restored, say), the older keeps it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnet::Ipv4Net;

/// Who serves LoadBalancer Services, and with which addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LoadBalancer {
    /// They get the addresses of the nodes.
    #[default]
    Nodes,
    /// Each gets an address of a range, for which one node answers.
    Range(Ranges),
    /// Another program serves them.
    Off,
}

impl FromStr for LoadBalancer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "nodes" => Ok(Self::Nodes),
            "none" => Ok(Self::Off),
            ranges => Ok(Self::Range(ranges.parse()?)),
        }
    }
}

/// Addresses to give, as ranges in order that do not overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranges(Vec<(Ipv4Addr, Ipv4Addr)>);

impl FromStr for Ranges {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut all = text.split(',').map(|part| range(part.trim())).collect::<Result<Vec<_>, _>>()?;
        all.sort_unstable();
        if let Some(w) = all.windows(2).find(|w| w[0].1 >= w[1].0) {
            return Err(format!("{}-{} and {}-{} overlap", w[0].0, w[0].1, w[1].0, w[1].1));
        }
        Ok(Self(all))
    }
}

impl std::fmt::Display for Ranges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = String::new();
        for (first, last) in &self.0 {
            let comma = if text.is_empty() { "" } else { "," };
            write!(text, "{comma}{first}-{last}")?;
        }
        f.write_str(&text)
    }
}

/// One range: `A-B`, a CIDR without its network and broadcast addresses, or one address.
fn range(text: &str) -> Result<(Ipv4Addr, Ipv4Addr), String> {
    let wrong = || format!("{text:?} is neither nodes, nor none, nor a range of IPv4 addresses (A-B or a CIDR)");
    if let Some((first, last)) = text.split_once('-') {
        let (first, last) = (first.trim().parse().map_err(|_| wrong())?, last.trim().parse().map_err(|_| wrong())?);
        return if first <= last { Ok((first, last)) } else { Err(format!("{text:?} ends before it begins")) };
    }
    if let Ok(one) = text.parse::<Ipv4Addr>() {
        return Ok((one, one));
    }
    let net: Ipv4Net = text.parse().map_err(|_| wrong())?;
    let edge = u32::from(net.prefix_len() < 31);
    Ok(((u32::from(net.network()) + edge).into(), (u32::from(net.broadcast()) - edge).into()))
}

impl Ranges {
    /// Whether the address is one to give.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&address))
    }

    /// An address for a Service that asks for `asked` and has `held`. `taken` says who has an address already.
    ///
    /// What it has it keeps, unless it asks for another; else the lowest free one.
    ///
    /// # Errors
    /// Why there is none.
    pub fn choose(
        &self,
        asked: Option<&str>,
        held: Option<Ipv4Addr>,
        taken: &BTreeMap<Ipv4Addr, String>,
    ) -> Result<Ipv4Addr, String> {
        if let Some(asked) = asked {
            let address = asked.parse().map_err(|_| format!("{asked:?} is not an IPv4 address"))?;
            if !self.contains(address) {
                return Err(format!("{address} is not in the range {self}"));
            }
            return match taken.get(&address) {
                Some(owner) => Err(format!("{address} belongs to {owner}")),
                None => Ok(address),
            };
        }
        if let Some(held) = held.filter(|h| self.contains(*h) && !taken.contains_key(h)) {
            return Ok(held);
        }
        let all = self.0.iter().flat_map(|(first, last)| u32::from(*first)..=u32::from(*last)).map(Ipv4Addr::from);
        all.into_iter().find(|a| !taken.contains_key(a)).ok_or_else(|| format!("no address is free in {self}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_are_read() {
        let got = |t: &str| match t.parse() {
            Ok(LoadBalancer::Range(r)) => r.to_string(),
            other => format!("{other:?}"),
        };
        assert_eq!(got("192.0.2.0/29"), "192.0.2.1-192.0.2.6");
        assert_eq!(got("192.0.2.8/31"), "192.0.2.8-192.0.2.9");
        assert_eq!(got("192.0.2.20-192.0.2.30, 192.0.2.9"), "192.0.2.9-192.0.2.9,192.0.2.20-192.0.2.30");
        assert_eq!("nodes".parse(), Ok(LoadBalancer::Nodes));
        assert_eq!("none".parse(), Ok(LoadBalancer::Off));
        for wrong in ["", "node", "192.0.2.9-192.0.2.1", "192.0.2.1-", "2001:db8::/64", "192.0.2.0/29,192.0.2.6"] {
            assert!(wrong.parse::<LoadBalancer>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn who_asks_for_an_address_gets_it_or_none() {
        let ranges: Ranges = "192.0.2.1-192.0.2.2".parse().unwrap();
        let [one, two, far] = ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(|a| a.parse::<Ipv4Addr>().unwrap());
        let taken: BTreeMap<_, _> = [(one, "the Service a/b".to_owned())].into();
        assert_eq!(ranges.choose(None, None, &taken), Ok(two));
        assert_eq!(ranges.choose(Some("192.0.2.2"), Some(one), &BTreeMap::new()), Ok(two));
        assert_eq!(ranges.choose(None, Some(two), &BTreeMap::new()), Ok(two));
        assert_eq!(ranges.choose(None, Some(far), &BTreeMap::new()), Ok(one));
        let why = |asked| ranges.choose(Some(asked), None, &taken).unwrap_err();
        assert_eq!(why("192.0.2.1"), "192.0.2.1 belongs to the Service a/b");
        assert_eq!(why("192.0.2.3"), "192.0.2.3 is not in the range 192.0.2.1-192.0.2.2");
        assert_eq!(why("x"), "\"x\" is not an IPv4 address");
        let all: BTreeMap<_, _> = [one, two].map(|a| (a, String::new())).into();
        assert_eq!(ranges.choose(None, None, &all).unwrap_err(), "no address is free in 192.0.2.1-192.0.2.2");
    }

    proptest! {
        /// Whoever comes and goes: what is given is in the range, nobody else's, and stays as long as it is wanted.
        #[test]
        fn no_address_is_given_twice(steps in prop::collection::vec((any::<bool>(), 0u8..12), 1..100)) {
            let ranges: Ranges = "192.0.2.0/29".parse().unwrap();
            let mut held: BTreeMap<u8, Ipv4Addr> = BTreeMap::new();
            for (come, who) in steps {
                if !come {
                    held.remove(&who);
                    continue;
                }
                let mine = held.get(&who).copied();
                let taken = held.iter().filter(|(w, _)| **w != who).map(|(w, a)| (*a, w.to_string())).collect();
                match ranges.choose(None, mine, &taken) {
                    Ok(address) => {
                        prop_assert!(ranges.contains(address) && !taken.contains_key(&address));
                        prop_assert!(mine.is_none_or(|m| m == address));
                        held.insert(who, address);
                    }
                    Err(_) => prop_assert_eq!(taken.len(), 6),
                }
            }
        }
    }
}

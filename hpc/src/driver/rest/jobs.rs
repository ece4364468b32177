//! Lists of jobs, read while they arrive.
//!
//! slurmrestd tells of the jobs of everybody, with a hundred fields each: some ten megabytes for a thousand jobs, each time it is
//! asked. So an answer is never here as a whole: one job after the other is cut out of it, and of each only the fields that
//! count are made into values.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

use crate::driver::SlurmError;

/// Bytes that one job, and all that is no job, may have.
const MOST: usize = 4 << 20;

/// The fields of a job that [`crate::state::parse::rest_job`] reads.
const NEEDED: [&str; 18] = [
    "array_job_id",
    "array_task_id",
    "array_task_string",
    "derived_exit_code",
    "eligible_time",
    "end_time",
    "exit_code",
    "job_id",
    "job_state",
    "name",
    "nodes",
    "partition",
    "restart_cnt",
    "start_time",
    "state_description",
    "state_reason",
    "submit_time",
    "time_limit",
];

/// An answer whose member `jobs` is a list, as it arrives.
#[derive(Default)]
pub(super) struct Cutter {
    depth: u32,
    string: bool,
    escaped: bool,
    /// The last string directly in the answer: before a list it is the list's name.
    name: Vec<u8>,
    listed: bool,
    job: Vec<u8>,
    /// The answer without its jobs.
    pub(super) rest: Vec<u8>,
}

impl Cutter {
    /// Takes the next bytes, and hands on each job that is whole.
    ///
    /// # Errors
    /// When a job, or what is none, has too many bytes, or a job is no object.
    pub(super) fn feed(&mut self, bytes: &[u8], each: &mut dyn FnMut(Value)) -> Result<(), SlurmError> {
        // Where the bytes begin that were not put anywhere so far.
        let mut from = 0;
        for (at, byte) in bytes.iter().enumerate() {
            if self.string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.string = false,
                    _ if self.depth == 1 => self.name.push(*byte),
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => {
                    self.string = true;
                    if self.depth == 1 {
                        self.name.clear();
                    }
                }
                b'{' | b'[' => {
                    self.depth += 1;
                    if self.depth == 2 && *byte == b'[' && self.name == b"jobs" {
                        self.put(&bytes[from..=at])?;
                        from = at + 1;
                        self.listed = true;
                    }
                }
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    match self.depth {
                        2 if self.listed => {
                            self.put(&bytes[from..=at])?;
                            from = at + 1;
                            each(job(&self.job)?);
                            self.job.clear();
                        }
                        1 if self.listed => {
                            self.listed = false;
                            self.job.clear();
                            from = at;
                        }
                        _ => {}
                    }
                }
                // Between two jobs.
                b',' if self.listed && self.depth == 2 => from = at + 1,
                _ => {}
            }
        }
        self.put(&bytes[from..])
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), SlurmError> {
        let to = if self.listed { &mut self.job } else { &mut self.rest };
        if to.len() + bytes.len() > MOST {
            return Err(SlurmError::Garbled(format!("a part of the answer has more than {MOST} bytes")));
        }
        to.extend_from_slice(bytes);
        Ok(())
    }
}

fn job(bytes: &[u8]) -> Result<Value, SlurmError> {
    let Needed(job) = serde_json::from_slice(bytes).map_err(|e| SlurmError::Garbled(format!("a job: {e}")))?;
    Ok(job)
}

/// An object with the needed fields alone.
struct Needed(Value);

/// The name of a field, where it is needed.
struct Name(Option<&'static str>);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Names;
        impl Visitor<'_> for Names {
            type Value = Name;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_str<E>(self, name: &str) -> Result<Name, E> {
                Ok(Name(NEEDED.binary_search(&name).ok().map(|i| NEEDED[i])))
            }
        }
        from.deserialize_str(Names)
    }
}

impl<'de> Deserialize<'de> for Needed {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Needed;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a job")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Needed, A::Error> {
                let mut all = Map::new();
                while let Some(Name(name)) = fields.next_key()? {
                    match name {
                        Some(name) => drop(all.insert(name.to_owned(), fields.next_value()?)),
                        None => drop(fields.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(Needed(Value::Object(all)))
            }
        }
        from.deserialize_map(Fields)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What comes out of a text that arrives in pieces of this many bytes.
    fn cut(text: &str, piece: usize) -> (Vec<Value>, Value) {
        let (mut cutter, mut jobs) = (Cutter::default(), vec![]);
        for bytes in text.as_bytes().chunks(piece) {
            cutter.feed(bytes, &mut |j| jobs.push(j)).unwrap();
        }
        (jobs, serde_json::from_slice(&cutter.rest).unwrap())
    }

    #[test]
    fn fields_are_in_order() {
        assert!(NEEDED.is_sorted(), "they are looked up by halves");
    }

    #[test]
    fn jobs_are_cut_out_wherever_the_pieces_end() {
        let odd = "a \"quoted\" ]}, {[\\ name";
        let jobs = json!([
            {"job_id": 1, "name": odd, "environment": {"jobs": [{"job_id": 9}]}, "exit_code": {"signal": {"id": 3}}},
            {"job_id": 2, "job_state": ["RUNNING"], "gres_detail": ["x", [1, {"y": "]"}]], "time_limit": {"set": true, "number": 5}},
        ]);
        let whole = json!({"meta": {"jobs": [1, {"a": 2}], "plugin": "jobs"}, "said": "jobs", "jobs": jobs, "errors": [{"error": "[{"}],
            "last": "\\"});
        let wanted = [
            json!({"job_id": 1, "name": odd, "exit_code": {"signal": {"id": 3}}}),
            json!({"job_id": 2, "job_state": ["RUNNING"], "time_limit": {"set": true, "number": 5}}),
        ];
        let mut rest = whole.clone();
        rest["jobs"] = json!([]);
        for text in [whole.to_string(), serde_json::to_string_pretty(&whole).unwrap()] {
            for piece in [1, 2, 3, 7, 64, 1 << 20] {
                assert_eq!(cut(&text, piece), (wanted.to_vec(), rest.clone()), "{piece}");
            }
        }
        let empty = json!({"jobs": [], "errors": []});
        assert_eq!(cut(&empty.to_string(), 5), (vec![], empty));
        let none = json!({"jobs": null, "errors": [1]});
        assert_eq!(cut(&none.to_string(), 5), (vec![], none));
    }

    #[test]
    fn what_is_no_list_of_jobs_is_told() {
        let feed = |text: &str| Cutter::default().feed(text.as_bytes(), &mut |_| {});
        assert!(matches!(feed(r#"{"jobs": [[1]]}"#), Err(SlurmError::Garbled(_))));
        let large = format!("{{\"jobs\": [{{\"name\": \"{}", "x".repeat(MOST));
        assert!(matches!(feed(&large), Err(SlurmError::Garbled(_))));
        assert!(feed("Authentication failure").is_ok());
    }
}

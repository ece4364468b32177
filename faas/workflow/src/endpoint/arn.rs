//! Names as clients of AWS write them, and what they are here.
//!
//! The account of an ARN stands for the namespace: twelve digits made of its name, so that clients which look closely are
//! content. Nothing has to be looked up backwards, for a caller acts in one namespace. Where a person writes an ARN, the
//! namespace itself may stand in the account's place. Any region will do; answers have the caller's.
//!
//! Names of the service may have capitals and more; objects may not. A name that no object can have becomes a readable
//! beginning and a digest ([`object_name`]), and the object's annotation [`NAME`] has the name itself.

use std::fmt;

use skiff_core::names;

pub use crate::arn::{REGION, account};
use crate::pack::digest;

/// Annotation of an object whose name for the service is another: that name.
pub const NAME: &str = "states.skiff.dev/name";
/// What a name must not have, beside control characters and blanks.
const FORBIDDEN: &str = "<>{}[]?*\"#%\\^|~`$&,;:/";

/// Whether the service takes this name of a machine, an execution or an activity.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let bad =
        |c: char| c.is_control() || c.is_whitespace() || FORBIDDEN.contains(c) || matches!(c, '\u{fffe}' | '\u{ffff}');
    (1..=80).contains(&name.chars().count()) && !name.chars().any(bad)
}

/// The name of the object that has this name for the service.
#[must_use]
pub fn object_name(name: &str) -> String {
    if names::is_dns1123_subdomain(name).is_empty() && name.len() <= 63 {
        return name.to_owned();
    }
    let plain = name.chars().map(|c| c.to_ascii_lowercase()).map(|c| if c.is_ascii_alphanumeric() { c } else { '-' });
    let mut start: String = plain.take(40).collect();
    start.truncate(start.trim_end_matches('-').len());
    let start = start.trim_start_matches('-');
    let digest = digest(name.as_bytes());
    let digest = digest.get(..10).unwrap_or_default();
    if start.is_empty() { format!("x-{digest}") } else { format!("{start}-{digest}") }
}

/// What an ARN names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    /// A state machine, with the label of a distributed map of it.
    Machine {
        /// Its name.
        name: String,
        /// Label of a map.
        label: Option<String>,
    },
    /// A version of one.
    Version {
        /// Name of the machine.
        machine: String,
        /// Its number.
        number: i64,
    },
    /// An alias of one.
    Alias {
        /// Name of the machine.
        machine: String,
        /// Its name.
        alias: String,
    },
    /// An execution.
    Execution {
        /// Name of the machine.
        machine: String,
        /// Its name.
        name: String,
    },
    /// An execution of an express machine.
    Express {
        /// Name of the machine.
        machine: String,
        /// Its name.
        name: String,
        /// What tells it from others of the name.
        id: String,
    },
    /// An activity.
    Activity {
        /// Its name.
        name: String,
    },
    /// A run of a distributed map.
    MapRun {
        /// Name of the machine.
        machine: String,
        /// Label of the map.
        label: String,
        /// Name of the execution.
        id: String,
    },
}

/// A name of something in the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arn {
    /// Region, as the caller wrote it.
    pub region: String,
    /// Account: digits, or a namespace.
    pub account: String,
    /// What it names.
    pub resource: Resource,
}

impl Arn {
    /// The ARN of something in a namespace.
    #[must_use]
    pub fn new(region: &str, namespace: &str, resource: Resource) -> Self {
        Self { region: region.to_owned(), account: account(namespace), resource }
    }

    /// Reads an ARN.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(6, ':');
        let head = [parts.next()?, parts.next()?, parts.next()?];
        if head[0] != "arn" || !head[1].starts_with("aws") || head[2] != "states" {
            return None;
        }
        let (region, account, rest) = (parts.next()?, parts.next()?, parts.next()?);
        let rest: Vec<&str> = rest.split(':').collect();
        if rest.iter().any(|p| p.is_empty()) || account.is_empty() {
            return None;
        }
        let own = |s: &str| s.to_owned();
        let resource = match rest[..] {
            ["stateMachine", name] => match name.split_once('/') {
                Some((name, label)) => Resource::Machine { name: own(name), label: Some(own(label)) },
                None => Resource::Machine { name: own(name), label: None },
            },
            ["stateMachine", machine, of] => match of.parse() {
                Ok(number) => Resource::Version { machine: own(machine), number },
                Err(_) => Resource::Alias { machine: own(machine), alias: own(of) },
            },
            ["execution", machine, name] => Resource::Execution { machine: own(machine), name: own(name) },
            ["express", machine, name, id] => Resource::Express { machine: own(machine), name: own(name), id: own(id) },
            ["activity", name] => Resource::Activity { name: own(name) },
            ["mapRun", of, id] => {
                let (machine, label) = of.split_once('/')?;
                Resource::MapRun { machine: own(machine), label: own(label), id: own(id) }
            }
            _ => return None,
        };
        Some(Self { region: own(region), account: own(account), resource })
    }

    /// Whether it means something of this namespace.
    #[must_use]
    pub fn is_in(&self, namespace: &str) -> bool {
        self.account == namespace || self.account == account(namespace)
    }
}

impl fmt::Display for Arn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "arn:aws:states:{}:{}:", self.region, self.account)?;
        match &self.resource {
            Resource::Machine { name, label: None } => write!(f, "stateMachine:{name}"),
            Resource::Machine { name, label: Some(label) } => write!(f, "stateMachine:{name}/{label}"),
            Resource::Version { machine, number } => write!(f, "stateMachine:{machine}:{number}"),
            Resource::Alias { machine, alias } => write!(f, "stateMachine:{machine}:{alias}"),
            Resource::Execution { machine, name } => write!(f, "execution:{machine}:{name}"),
            Resource::Express { machine, name, id } => write!(f, "express:{machine}:{name}:{id}"),
            Resource::Activity { name } => write!(f, "activity:{name}"),
            Resource::MapRun { machine, label, id } => write!(f, "mapRun:{machine}/{label}:{id}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn arns_come_back() {
        for rest in [
            "stateMachine:Hello",
            "stateMachine:Hello/Label",
            "stateMachine:Hello:3",
            "stateMachine:Hello:prod",
            "execution:Hello:run-1",
            "express:Hello:run-1:7f",
            "activity:Work",
            "mapRun:Hello/Label:7f",
        ] {
            let text = format!("arn:aws:states:eu-central-1:{}:{rest}", account("shop"));
            let arn = Arn::parse(&text).unwrap();
            assert_eq!(arn.to_string(), text);
            assert!(arn.is_in("shop") && !arn.is_in("other"));
        }
        assert!(Arn::parse("arn:aws:states:skiff:shop:stateMachine:x").unwrap().is_in("shop"));
        for bad in [
            "",
            "x",
            "arn:aws:states:r:1:stateMachine:",
            "arn:aws:states:r:1:stateMachine",
            "arn:aws:states:r::stateMachine:x",
            "arn:aws:lambda:r:1:stateMachine:x",
            "arn:aws:states:r:1:mapRun:x:y",
            "arn:aws:states:r:1:execution:x",
        ] {
            assert_eq!(Arn::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn names_are_as_the_service_takes_them() {
        for (name, ok) in [
            ("Hello_World-1.x", true),
            ("größe", true),
            ("a b", false),
            ("a/b", false),
            ("a:b", false),
            ("", false),
            (&"x".repeat(80), true),
            (&"x".repeat(81), false),
            ("a\u{7f}", false),
        ] {
            assert_eq!(is_name(name), ok, "{name}");
        }
        assert_eq!(object_name("add-branch"), "add-branch");
        assert!(object_name("Hello_World").starts_with("hello-world-"));
        assert_ne!(object_name("Hello"), object_name("hello"));
        assert_ne!(object_name("HELLO"), object_name("Hello"));
    }

    proptest! {
        #[test]
        fn every_name_has_an_object(name in "\\PC{1,80}") {
            let object = object_name(&name);
            prop_assert!(names::is_dns1123_subdomain(&object).is_empty(), "{}", object);
            prop_assert!(object.len() <= 63);
        }
    }
}

//! Elements of the table's maps and sets, in both of nftables' tongues: the text that `nft` reads, and the bytes that
//! the kernel takes.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

use ipnet::Ipv4Net;

use crate::model::Protocol;

/// One field of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The drawn number.
    Slot(u32),
    /// An address.
    Address(Ipv4Addr),
    /// A range of addresses.
    Range(Ipv4Net),
    /// A protocol.
    Protocol(Protocol),
    /// A port.
    Port(u16),
}

/// What a key leads to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// Nothing: the element is a set's.
    None,
    /// An endpoint.
    Endpoint(SocketAddrV4),
    /// A chain.
    Goto(String),
    /// The packet's end.
    Drop,
}

/// One element.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    /// The map or set it is in.
    pub map: &'static str,
    /// Its key.
    pub key: Vec<Part>,
    /// What the key leads to.
    pub value: Value,
}

/// Elements that go, and elements that come after them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Elements to delete.
    pub gone: BTreeMap<&'static str, Vec<Element>>,
    /// Elements to add.
    pub come: BTreeMap<&'static str, Vec<Element>>,
}

impl Difference {
    /// Takes an element in.
    pub fn push(&mut self, comes: bool, element: Element) {
        let side = if comes { &mut self.come } else { &mut self.gone };
        side.entry(element.map).or_default().push(element);
    }

    /// How many elements there are.
    pub fn len(&self) -> usize {
        self.gone.values().chain(self.come.values()).map(Vec::len).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slot(number) => number.fmt(f),
            Self::Address(address) => address.fmt(f),
            Self::Range(range) => range.fmt(f),
            Self::Protocol(protocol) => protocol.name().fmt(f),
            Self::Port(port) => port.fmt(f),
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, part) in self.key.iter().enumerate() {
            write!(f, "{}{part}", if i == 0 { "" } else { " . " })?;
        }
        match &self.value {
            Value::None => Ok(()),
            Value::Endpoint(endpoint) => write!(f, " : {} . {}", endpoint.ip(), endpoint.port()),
            Value::Goto(chain) => write!(f, " : goto {chain}"),
            Value::Drop => write!(f, " : drop"),
        }
    }
}

/// The fields of a key as the kernel compares them: each filled up to four bytes. `None` for a range, which is two
/// keys.
pub fn key_bytes(key: &[Part]) -> Option<Vec<u8>> {
    let fields: Option<Vec<[u8; 4]>> = key.iter().map(|part| part.bytes()).collect();
    fields.map(|fields| fields.concat())
}

/// An endpoint as the kernel takes it.
pub fn endpoint_bytes(endpoint: SocketAddrV4) -> Vec<u8> {
    let [high, low] = endpoint.port().to_be_bytes();
    [endpoint.ip().octets(), [high, low, 0, 0]].concat()
}

impl Part {
    fn bytes(self) -> Option<[u8; 4]> {
        match self {
            // The kernel draws in its own byte order; all else is as on the wire.
            Self::Slot(number) => Some(number.to_ne_bytes()),
            Self::Address(address) => Some(address.octets()),
            Self::Protocol(Protocol::Tcp) => Some([6, 0, 0, 0]),
            Self::Protocol(Protocol::Udp) => Some([17, 0, 0, 0]),
            Self::Protocol(Protocol::Sctp) => Some([132, 0, 0, 0]),
            Self::Port(port) => Some([port.to_be_bytes(), [0, 0]].concat().try_into().unwrap_or_default()),
            Self::Range(_) => None,
        }
    }
}

//! Small changes of the table straight to the kernel, as one netlink transaction.
//!
//! `nft` reads a whole map before it deletes one element of it, which at ten thousand Services takes longer than
//! everything else together. So differences of elements go this way; tables, chains, rules, ranges and very large
//! differences go through `nft`, which knows how to write them.
//!
//! The kernel works a transaction through within the call that sends it. One that only adds takes a fraction of a
//! millisecond; one that deletes waits for a grace period, which is some milliseconds: call it where blocking is fine.

use std::io;

use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use super::elements::{Difference, Element, Value, endpoint_bytes, key_bytes};

/// Largest difference that goes this way: its messages must fit the socket's buffer.
pub const MOST: usize = 256;

const REQUEST: u16 = 0x001;
const ACKNOWLEDGE: u16 = 0x004;
const CREATE: u16 = 0x400;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NFTABLES: u16 = 10;
const NEW_ELEMENTS: u16 = NFTABLES << 8 | 12;
const DELETE_ELEMENTS: u16 = NFTABLES << 8 | 14;
const NESTED: u16 = 0x8000;
const ERROR: u16 = 2;
/// The verdict to go to a chain and not come back.
const GOTO: i32 = -4;
const DONT_WAIT: i32 = 0x40;

/// Whether the difference can go this way.
pub fn fits(difference: &Difference) -> bool {
    let all = difference.gone.values().chain(difference.come.values()).flatten();
    difference.len() <= MOST && all.into_iter().all(|element| key_bytes(&element.key).is_some())
}

/// Changes the elements of `table`: all or, with an error, nothing.
///
/// # Errors
/// When the kernel refuses: an element to delete is not there, or one to add is there with another value.
pub fn apply(table: &str, difference: &Difference) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let (batch, mut expected) = batch(table, difference);
    socket.send(&batch, 0)?;
    while expected > 0 {
        // All answers are there already; if one is missing, waiting would not bring it.
        let mut answers = Vec::with_capacity(32 * 1024);
        socket.recv(&mut answers, DONT_WAIT)?;
        let mut rest = &answers[..];
        while let Some(length) = rest.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes) as usize) {
            let kind = rest.get(4..6).map(|b| u16::from_ne_bytes([b[0], b[1]]));
            let code = rest.get(16..20).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes);
            if let (Some(ERROR), Some(code)) = (kind, code) {
                if code != 0 {
                    return Err(io::Error::from_raw_os_error(-code));
                }
                expected = expected.saturating_sub(1);
            }
            rest = rest.get(length.next_multiple_of(4).max(16)..).unwrap_or_default();
        }
    }
    Ok(())
}

/// The transaction's bytes, and how many messages will be acknowledged.
fn batch(table: &str, difference: &Difference) -> (Vec<u8>, usize) {
    let mut batch = Vec::new();
    // The batch's own messages name the subsystem where others have their address family's resource.
    let frame = |batch: &mut Vec<u8>, kind| message(batch, kind, REQUEST, 0, NFTABLES, &[]);
    frame(&mut batch, BATCH_BEGIN);
    let mut count = 0;
    for (kind, flags, maps) in
        [(DELETE_ELEMENTS, REQUEST, &difference.gone), (NEW_ELEMENTS, REQUEST | CREATE, &difference.come)]
    {
        for (map, elements) in maps {
            let list: Vec<u8> = elements.iter().flat_map(|e| attribute(NESTED | 1, &element(e))).collect();
            let body = [attribute(1, &text(table)), attribute(2, &text(map)), attribute(NESTED | 3, &list)].concat();
            message(&mut batch, kind, flags | ACKNOWLEDGE, 2, 0, &body);
            count += 1;
        }
    }
    frame(&mut batch, BATCH_END);
    (batch, count)
}

fn message(batch: &mut Vec<u8>, kind: u16, flags: u16, family: u8, resource: u16, body: &[u8]) {
    let length = u32::try_from(20 + body.len()).unwrap_or(u32::MAX);
    batch.extend(length.to_ne_bytes());
    batch.extend(kind.to_ne_bytes());
    batch.extend(flags.to_ne_bytes());
    // Sequence number and sender: one transaction, one socket.
    batch.extend([0; 8]);
    batch.extend([family, 0]);
    batch.extend(resource.to_be_bytes());
    batch.extend(body);
}

fn element(element: &Element) -> Vec<u8> {
    let key = attribute(1, &key_bytes(&element.key).unwrap_or_default());
    let verdict = |code: i32, chain: Option<&str>| {
        let chain = chain.map(|name| attribute(2, &text(name))).unwrap_or_default();
        Some(attribute(NESTED | 2, &[attribute(1, &code.to_be_bytes()), chain].concat()))
    };
    let value = match &element.value {
        Value::None => None,
        Value::Endpoint(endpoint) => Some(attribute(1, &endpoint_bytes(*endpoint))),
        Value::Goto(chain) => verdict(GOTO, Some(chain)),
        Value::Drop => verdict(0, None),
    };
    let value = value.map(|value| attribute(NESTED | 2, &value)).unwrap_or_default();
    [attribute(NESTED | 1, &key), value].concat()
}

fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = 4 + payload.len();
    let mut bytes = Vec::with_capacity(length + 3);
    bytes.extend(u16::try_from(length).unwrap_or(u16::MAX).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(payload);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

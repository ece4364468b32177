//! Gratuitous ARP: tells a segment where an address is now.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, sendto, socket};

/// Length of an Ethernet address.
const HARDWARE: usize = 6;
/// `ARPHRD_ETHER`.
const ETHERNET: u16 = 1;

/// Announces the addresses of each interface, by its index. What fails is logged: it is done again anyway.
pub fn announce(places: &BTreeMap<u32, Vec<Ipv4Addr>>) {
    if places.is_empty() {
        return;
    }
    if let Err(error) = try_announce(places) {
        tracing::warn!(%error, "load balancers' addresses are held but not announced");
    }
}

fn try_announce(places: &BTreeMap<u32, Vec<Ipv4Addr>>) -> io::Result<()> {
    // Only to send: with no protocol it receives nothing.
    let socket: OwnedFd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    for interface in getifaddrs()? {
        let Some(link) = interface.address.as_ref().and_then(|a| a.as_link_addr()) else { continue };
        let index = u32::try_from(link.ifindex()).unwrap_or_default();
        let Some((addresses, mac)) = places.get(&index).zip(hardware(link)) else { continue };
        for address in addresses {
            sendto(socket.as_raw_fd(), &frame(mac, *address), link, MsgFlags::MSG_DONTWAIT)?;
        }
    }
    Ok(())
}

/// The interface's address; none where there is no ARP.
fn hardware(link: &LinkAddr) -> Option<[u8; HARDWARE]> {
    link.addr().filter(|_| link.hatype() == ETHERNET && link.halen() == HARDWARE)
}

/// The frame: a request to everybody in which sender and target are the address itself.
fn frame(mac: [u8; HARDWARE], address: Ipv4Addr) -> Vec<u8> {
    let mut frame = Vec::with_capacity(42);
    frame.extend([0xff; HARDWARE]);
    frame.extend(mac);
    frame.extend([0x08, 0x06]);
    // Ethernet, IPv4, the lengths of their addresses, a request.
    frame.extend([0, 1, 0x08, 0x00, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(address.octets());
    frame.extend([0; HARDWARE]);
    frame.extend(address.octets());
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_is_as_in_the_book() {
        let frame = frame([2, 0, 0, 0, 0, 7], [192, 0, 2, 1].into());
        let text: String = frame.iter().map(|b| format!("{b:02x}")).collect();
        let head = "ffffffffffff0200000000070806";
        assert_eq!(text, format!("{head}0001080006040001020000000007c0000201000000000000c0000201"));
    }
}

//! What the proxy changes on the host besides its table: the name server's address, and leave to forward.

use std::net::IpAddr;
use std::path::Path;

use futures::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressScope};

use crate::services::nft;

/// Index of the loopback interface, the same in every network namespace.
const LOOPBACK: u32 = 1;

/// A rule of the container engine's chain that accepts connections through this node to endpoints on other nodes.
const ACCEPT: [&str; 8] = ["-m", "connmark", "--mark", "0x4000/0x4000", "-m", "comment", "--comment", "skiff services"];

/// Why the host could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection to the kernel's routing.
    #[error("cannot open a netlink socket")]
    Netlink(#[source] std::io::Error),
    /// The kernel refused the address.
    #[error("cannot change the addresses of the loopback interface")]
    Address(#[source] rtnetlink::Error),
    /// A kernel setting could not be written.
    #[error("cannot set {name}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// Gives the host the name server's address.
///
/// On the loopback interface: dummy interfaces are not in every kernel. With host scope, so that nothing takes it as a
/// source address.
pub async fn add_address(address: IpAddr) -> Result<(), Error> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Netlink)?;
    let connection = tokio::spawn(connection);
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let mut request = handle.address().add(LOOPBACK, address, bits).replace();
    request.message_mut().header.scope = AddressScope::Host;
    let done = request.execute().await.map_err(Error::Address);
    connection.abort();
    done
}

/// Takes the name server's address away again. Does nothing when it is not there.
pub async fn remove_address(address: IpAddr) -> Result<(), Error> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Netlink)?;
    let connection = tokio::spawn(connection);
    let work = async {
        let mut addresses = handle.address().get().set_link_index_filter(LOOPBACK).execute();
        while let Some(message) = addresses.try_next().await? {
            let own = |a: &AddressAttribute| matches!(a, AddressAttribute::Local(ip) if *ip == address);
            if message.attributes.iter().any(own) {
                handle.address().del(message).execute().await?;
            }
        }
        Ok(())
    };
    let done = work.await.map_err(Error::Address);
    connection.abort();
    done
}

/// Makes the host forward packets: without it no packet for a Service leaves it.
pub fn enable_forwarding() -> Result<(), Error> {
    let name = "net/ipv4/ip_forward";
    let path = Path::new("/proc/sys").join(name);
    // Not through the runtime's file functions: another thread may be in another network namespace.
    if std::fs::read_to_string(&path).is_ok_and(|value| value.trim() == "1") {
        return Ok(());
    }
    std::fs::write(&path, "1").map_err(|source| Error::Setting { name, source })
}

/// Lets connections that came in over a node port go on to other nodes.
///
/// The container engine sets the policy of its forward chain to drop, and accepting elsewhere does not overrule that.
/// It keeps a chain for such rules; without it there is nothing to do.
pub async fn accept_forwarding() {
    if nft::run("iptables", &["-w", "5", "-n", "-L", "DOCKER-USER"], "").await.is_err() {
        return;
    }
    let rule = |verb| [&["-w", "5", verb, "DOCKER-USER"], &ACCEPT[..], &["-j", "ACCEPT"]].concat();
    if nft::run("iptables", &rule("-C"), "").await.is_err()
        && let Err(error) = nft::run("iptables", &rule("-I"), "").await
    {
        tracing::warn!(%error, "node ports may not reach endpoints on other nodes");
    }
}

/// Removes what [`accept_forwarding`] made.
pub async fn refuse_forwarding() {
    // Fails when the rule is not there, which is what we want.
    let rule = [&["-w", "5", "-D", "DOCKER-USER"], &ACCEPT[..], &["-j", "ACCEPT"]].concat();
    let _ = nft::run("iptables", &rule, "").await;
}

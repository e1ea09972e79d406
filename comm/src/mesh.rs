//! One authenticated connection between every pair of ranks: each dials the ranks below it and
//! accepts those above.

use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use crate::config::JoinConfig;
use crate::error::{CommError, Result};
use crate::handshake::{HANDSHAKE_LIMIT, Purpose, accept, dial};

/// Bytes under way between ranks of one machine: few, so that they are still in the cache when the other
/// rank reads them. Between machines the system finds out by itself how many the network takes.
const SAME_MACHINE_SEND_BUFFER: usize = 192 * 1024;

/// The connections of `config.rank`, by rank; `None` at its own place.
pub(crate) async fn form(
    config: &JoinConfig,
    addresses: &[SocketAddr],
    listener: TcpListener,
) -> Result<Vec<Option<TcpStream>>> {
    let mut streams: Vec<Option<TcpStream>> = addresses.iter().map(|_| None).collect();
    let until = Instant::now() + config.deadline;
    let connect = async {
        for (peer, address) in addresses.iter().enumerate().take(config.rank) {
            streams[peer] = Some(dial_peer(config, peer, *address).await?);
        }
        accept_peers(config, &listener, &mut streams).await
    };
    let result = timeout_at(until, connect).await;
    let missing: Vec<usize> =
        (0..streams.len()).filter(|&peer| peer != config.rank && streams[peer].is_none()).collect();
    match result {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(error),
        Err(_) => return Err(CommError::Rendezvous { missing, timeout: config.deadline }),
    }
    for stream in streams.iter().flatten() {
        tune(stream).map_err(|why| CommError::system("set up a connection", why))?;
    }
    Ok(streams)
}

fn tune(stream: &TcpStream) -> std::io::Result<()> {
    // Small messages (barriers) must not wait to be sent together with others.
    stream.set_nodelay(true)?;
    if stream.local_addr()?.ip() == stream.peer_addr()?.ip() {
        SockRef::from(stream).set_send_buffer_size(SAME_MACHINE_SEND_BUFFER)?;
    }
    Ok(())
}

async fn dial_peer(config: &JoinConfig, peer: usize, address: SocketAddr) -> Result<TcpStream> {
    let name = format!("rank {peer} at {address}");
    let mut stream =
        TcpStream::connect(address).await.map_err(|why| CommError::unreachable(&name, why))?;
    dial(&mut stream, &name, Purpose::Mesh, &config.secret, &config.rank).await?;
    Ok(stream)
}

/// Accepts until every higher rank is connected; whoever can't prove itself is left aside.
async fn accept_peers(
    config: &JoinConfig,
    listener: &TcpListener,
    streams: &mut [Option<TcpStream>],
) -> Result<()> {
    let mut proving = JoinSet::new();
    while streams.iter().skip(config.rank + 1).any(Option::is_none) {
        tokio::select! {
            accepted = listener.accept() => {
                let (mut stream, from) =
                    accepted.map_err(|why| CommError::system("accept a connection", why))?;
                let secret = config.secret.clone();
                proving.spawn(async move {
                    let name = from.to_string();
                    let proof = accept::<usize>(&mut stream, &name, Purpose::Mesh, &secret);
                    let rank = timeout(HANDSHAKE_LIMIT, proof).await.ok()?.ok()?;
                    Some((rank, stream))
                });
            }
            Some(proved) = proving.join_next() => {
                if let Ok(Some((rank, stream))) = proved
                    && rank > config.rank
                    && let Some(place @ None) = streams.get_mut(rank)
                {
                    *place = Some(stream);
                }
            }
        }
    }
    Ok(())
}

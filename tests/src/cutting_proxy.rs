//! A proxy that cuts connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Starts a proxy of a server that cuts each connection after a number of bytes that grows with each connection. Returns its address and
/// its count of connections.
pub async fn start_cutting_proxy(server: String) -> Result<(String, Arc<AtomicUsize>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let nth = count.fetch_add(1, Ordering::Relaxed);
            let server = server.clone();
            tokio::spawn(async move {
                let mut server = TcpStream::connect(server).await?;
                let (mut from_client, mut to_client) = client.split();
                let (mut from_server, mut to_server) = server.split();
                let down = async {
                    let mut remaining = 1500 + nth * 2777;
                    let mut buffer = [0; 4096];
                    while remaining > 0 {
                        let read = from_server.read(&mut buffer).await?;
                        if read == 0 {
                            break;
                        }
                        let passed = read.min(remaining);
                        to_client.write_all(&buffer[..passed]).await?;
                        remaining -= passed;
                    }
                    std::io::Result::Ok(())
                };
                tokio::select! {
                    result = down => result,
                    result = tokio::io::copy(&mut from_client, &mut to_server) => result.map(drop),
                }
            });
        }
    });
    Ok((address, connections))
}

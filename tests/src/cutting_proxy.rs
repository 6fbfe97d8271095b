//! Connections that break.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Passes connections on to a server, and cuts each after a while: later each time, at any byte. Answers the address and how
/// many connections there were.
pub async fn start_cutting_proxy(server: String) -> Result<(String, Arc<AtomicUsize>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let nth = counted.fetch_add(1, Ordering::Relaxed);
            let server = server.clone();
            tokio::spawn(async move {
                let mut server = TcpStream::connect(server).await?;
                let (mut from_client, mut to_client) = client.split();
                let (mut from_server, mut to_server) = server.split();
                let down = async {
                    let mut left = 1500 + nth * 2777;
                    let mut buffer = [0; 4096];
                    while left > 0 {
                        let read = from_server.read(&mut buffer).await?;
                        if read == 0 {
                            break;
                        }
                        let passed = read.min(left);
                        to_client.write_all(&buffer[..passed]).await?;
                        left -= passed;
                    }
                    std::io::Result::Ok(())
                };
                tokio::select! {
                    done = down => done,
                    done = tokio::io::copy(&mut from_client, &mut to_server) => done.map(drop),
                }
            });
        }
    });
    Ok((address, connections))
}

//! Parts of the HTTP servers of tests.

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::PATIENCE;

/// Reads a request with its body, of the length in `Content-Length`; `None` if the connection ends before, or after [`PATIENCE`]. A socket
/// that is closed with unread bytes is reset, which would drop the response.
pub async fn read_request(socket: &mut TcpStream) -> Option<String> {
    tokio::time::timeout(PATIENCE, read_whole_request(socket)).await.ok()?
}

async fn read_whole_request(socket: &mut TcpStream) -> Option<String> {
    let (mut read, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&read[..end]);
            let length = head.lines().find_map(content_length).unwrap_or(0);
            if read.len() >= end + 4 + length {
                return Some(String::from_utf8_lossy(&read).into_owned());
            }
        }
        match socket.read(&mut buffer).await {
            Ok(0) | Err(_) => return None,
            Ok(bytes) => read.extend_from_slice(&buffer[..bytes]),
        }
    }
}

fn content_length(line: &str) -> Option<usize> {
    let (name, value) = line.split_once(':')?;
    if name.eq_ignore_ascii_case("content-length") { value.trim().parse().ok() } else { None }
}

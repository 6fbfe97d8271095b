//! Parts of the HTTP servers of tests.

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// Reads a request with its body, of the length in `content-length`; `None` if the connection ends before. A socket that is closed with
/// unread bytes is reset, which would drop the response.
pub async fn read_request(socket: &mut TcpStream) -> Option<String> {
    let (mut read, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&read).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.and_then(|length| length.parse().ok()).unwrap_or(0) {
                return Some(text);
            }
        }
        match socket.read(&mut buffer).await {
            Ok(0) | Err(_) => return None,
            Ok(bytes) => read.extend_from_slice(&buffer[..bytes]),
        }
    }
}

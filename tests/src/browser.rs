//! A headless Chromium, and the server of the page that it opens.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::{PATIENCE, send_signal, tool};

/// A browser with a page; killed when dropped.
pub struct Browser {
    child: Child,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts the browser with the page of a URL.
    pub fn open(url: &str) -> Result<Self> {
        let profile = tempfile::tempdir()?;
        let mut command = Command::new(tool("WEIR_TEST_BROWSER")?);
        // The sandbox of Chromium needs privileges that containers lack, and the page is from this repository.
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]);
        command.arg("--remote-debugging-port=0").arg(format!("--user-data-dir={}", profile.path().display())).arg(url);
        // The browser has several processes, which are killed as a group.
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).spawn();
        Ok(Self { child: child.context("cannot start the browser")?, _profile: profile })
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = send_signal("KILL", &format!("-{}", self.child.id()));
        let _ = self.child.wait();
    }
}

/// What the server of a page sends.
pub struct File {
    /// The value of `content-type`.
    pub media_type: &'static str,
    /// The body.
    pub bytes: Vec<u8>,
}

/// Serves the files that `file` gives for the paths of requests, until the page posts its report to `/done`.
pub async fn page_report<F>(page: &TcpListener, file: F) -> Result<Value>
where
    F: Fn(&str) -> Option<File> + Clone + Send + 'static,
{
    let serve = async {
        // A browser opens connections that it uses later or never, so none waits for another.
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                client = page.accept() => drop(connections.spawn(answer(client?.0, file.clone()))),
                Some(answered) = connections.join_next() => {
                    if let Some(report) = answered?? {
                        return Ok(report);
                    }
                }
            }
        }
    };
    tokio::time::timeout(PATIENCE, serve).await.context("the page sent no report")?
}

/// Answers the request of a connection; the report, if it was one.
async fn answer(mut client: TcpStream, file: impl Fn(&str) -> Option<File>) -> Result<Option<Value>> {
    let Some((head, body)) = request(&mut client).await? else { return Ok(None) };
    let empty = File { media_type: "text/plain", bytes: Vec::new() };
    match head.split(' ').collect::<Vec<_>>()[..] {
        ["POST", "/done", ..] => {
            respond(&mut client, "204 No Content", &empty).await?;
            return Ok(Some(serde_json::from_slice(&body)?));
        }
        ["GET", path, ..] => match file(path) {
            Some(file) => respond(&mut client, "200 OK", &file).await?,
            // A request for an icon.
            None => respond(&mut client, "404 Not Found", &empty).await?,
        },
        _ => bail!("the page sent {head}"),
    }
    Ok(None)
}

/// The head and the body of a request; none if the connection is closed without one.
async fn request(client: &mut TcpStream) -> Result<Option<(String, Vec<u8>)>> {
    let mut bytes = Vec::new();
    loop {
        if client.read_buf(&mut bytes).await? == 0 {
            if bytes.is_empty() {
                return Ok(None);
            }
            bail!("the request is incomplete");
        }
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = String::from_utf8(bytes[..end].to_vec())?;
        let length = head
            .lines()
            .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
        if bytes.len() - end - 4 >= length.unwrap_or(0) {
            return Ok(Some((head, bytes.split_off(end + 4))));
        }
    }
}

async fn respond(client: &mut TcpStream, status: &str, file: &File) -> Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        file.media_type,
        file.bytes.len()
    );
    client.write_all(&[head.as_bytes(), &file.bytes].concat()).await.context("cannot respond to the page")
}

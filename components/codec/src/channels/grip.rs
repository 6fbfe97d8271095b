//! GRIP, the Generic Realtime Intermediary Protocol: response headers that instruct an intermediary to hold the connection and to write
//! the events of some channels to it. Weir's own host is such an intermediary; Pushpin is another.
//!
//! The gateway writes the headers and the host reads them. Values are checked when they are written, since a semicolon or a line end in
//! a value would change the meaning of the header. Reading is bounded.

use std::time::Duration;

use thiserror::Error;

/// Maximum number of channels that one connection follows.
pub const CHANNELS_MAX: usize = 64;
/// Maximum number of bytes in a channel's name, an id, a link or the data of a heartbeat.
pub const VALUE_BYTES_MAX: usize = 1024;
/// Longest heartbeat period, in seconds.
pub const KEEP_ALIVE_S_MAX: u64 = 3600;

/// How a connection is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldMode {
    /// Until the connection ends: every event is written to it.
    Stream,
    /// Until the first event, which is the response: long polling.
    Response,
}

/// A channel to follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoldChannel {
    /// Its name.
    pub name: String,
    /// The id of the last event that the client, or this response, has: the events after it are written.
    pub prev_id: Option<String>,
}

/// The heartbeat of an idle connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeepAlive {
    /// The bytes to write, such as [`crate::http::sse::HEARTBEAT`].
    pub data: Vec<u8>,
    /// The time without a write after which they are written.
    pub timeout: Duration,
}

/// The instruction of a response to hold its connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// How the connection is held.
    pub mode: HoldMode,
    /// The channels that it follows: 1 to [`CHANNELS_MAX`].
    pub channels: Vec<HoldChannel>,
    /// The heartbeat.
    pub keep_alive: Option<KeepAlive>,
    /// The path of this server at which the intermediary requests missed events.
    pub link: Option<String>,
    /// The status that the client sees, if it is not the status of the response.
    pub status: Option<u16>,
}

/// Why a hold cannot be written or read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum GripError {
    /// A value is empty or has a character that is not allowed in it.
    #[error("the value of `{header}` has a character that it must not have, or is empty")]
    Value {
        /// The header.
        header: &'static str,
    },
    /// A value is too long, or there are too many values.
    #[error("`{header}` is over its bound")]
    TooLong {
        /// The header.
        header: &'static str,
    },
    /// A header appears twice that may only appear once.
    #[error("`{header}` appears twice")]
    Twice {
        /// The header.
        header: &'static str,
    },
    /// A hold has no channel.
    #[error("a hold needs a channel")]
    NoChannel,
}

const HOLD: &str = "grip-hold";
const CHANNEL: &str = "grip-channel";
const KEEP_ALIVE: &str = "grip-keep-alive";
const LINK: &str = "grip-link";
const STATUS: &str = "grip-status";

impl Hold {
    /// The headers.
    ///
    /// # Errors
    ///
    /// See [`GripError`].
    pub fn to_headers(&self) -> Result<Vec<(&'static str, String)>, GripError> {
        let mode = match self.mode {
            HoldMode::Stream => "stream",
            HoldMode::Response => "response",
        };
        let mut headers = vec![(HOLD, mode.to_owned())];
        match self.channels.len() {
            0 => return Err(GripError::NoChannel),
            1..=CHANNELS_MAX => {}
            _ => return Err(GripError::TooLong { header: CHANNEL }),
        }
        for HoldChannel { name, prev_id } in &self.channels {
            token(CHANNEL, name)?;
            headers.push((
                CHANNEL,
                match prev_id {
                    None => name.clone(),
                    Some(prev_id) => {
                        token(CHANNEL, prev_id)?;
                        format!("{name}; prev-id={prev_id}")
                    }
                },
            ));
        }
        if let Some(KeepAlive { data, timeout }) = &self.keep_alive {
            let seconds = timeout.as_secs();
            if data.len() > VALUE_BYTES_MAX || seconds > KEEP_ALIVE_S_MAX {
                return Err(GripError::TooLong { header: KEEP_ALIVE });
            }
            if data.is_empty() || seconds == 0 {
                return Err(GripError::Value { header: KEEP_ALIVE });
            }
            headers.push((KEEP_ALIVE, format!("{}; format=cstring; timeout={seconds}", escape(data)?)));
        }
        if let Some(link) = &self.link {
            if !is_path(link) {
                return Err(GripError::Value { header: LINK });
            }
            bounded(LINK, link)?;
            headers.push((LINK, format!("<{link}>; rel=next")));
        }
        if let Some(status) = self.status {
            if !(200..=599).contains(&status) {
                return Err(GripError::Value { header: STATUS });
            }
            headers.push((STATUS, status.to_string()));
        }
        Ok(headers)
    }

    /// Reads the hold from the headers of a response; `None` when the response is not to be held. Header names are compared without
    /// regard to case; other headers are ignored.
    ///
    /// # Errors
    ///
    /// A header is malformed or over its bound: the request fails, because a hold with other terms than intended would be wrong.
    pub fn from_headers<'h>(headers: impl IntoIterator<Item = (&'h str, &'h [u8])>) -> Result<Option<Self>, GripError> {
        let (mut mode, mut keep_alive, mut link, mut status) = (None, None, None, None);
        let mut channels = Vec::new();
        for (name, value) in headers {
            let Some(header) =
                [HOLD, CHANNEL, KEEP_ALIVE, LINK, STATUS].into_iter().find(|h| name.eq_ignore_ascii_case(h))
            else {
                continue;
            };
            let value = std::str::from_utf8(value).map_err(|_| GripError::Value { header })?.trim();
            match header {
                HOLD => once(&mut mode, header, read_mode(value)?)?,
                CHANNEL => read_channels(value, &mut channels)?,
                KEEP_ALIVE => once(&mut keep_alive, header, read_keep_alive(value)?)?,
                LINK => once(&mut link, header, read_link(value)?)?,
                _ => once(&mut status, header, read_status(value)?)?,
            }
        }
        let Some(mode) = mode else { return Ok(None) };
        if channels.is_empty() {
            return Err(GripError::NoChannel);
        }
        Ok(Some(Self { mode, channels, keep_alive, link, status }))
    }
}

fn once<T>(slot: &mut Option<T>, header: &'static str, value: T) -> Result<(), GripError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(GripError::Twice { header }),
    }
}

fn bounded(header: &'static str, value: &str) -> Result<(), GripError> {
    if value.len() > VALUE_BYTES_MAX { Err(GripError::TooLong { header }) } else { Ok(()) }
}

/// Checks a name or an id: visible ASCII without the separators of values and parameters.
fn token(header: &'static str, value: &str) -> Result<(), GripError> {
    bounded(header, value)?;
    let is_allowed = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b';' | b',' | b'"' | b'\\');
    if value.is_empty() || !value.bytes().all(is_allowed) {
        return Err(GripError::Value { header });
    }
    Ok(())
}

fn read_mode(value: &str) -> Result<HoldMode, GripError> {
    match value {
        "stream" => Ok(HoldMode::Stream),
        "response" => Ok(HoldMode::Response),
        _ => Err(GripError::Value { header: HOLD }),
    }
}

/// Channels separated by commas, each with parameters; unknown parameters are ignored.
fn read_channels(value: &str, channels: &mut Vec<HoldChannel>) -> Result<(), GripError> {
    for entry in value.split(',') {
        let mut parts = entry.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        token(CHANNEL, name)?;
        let mut prev_id = None;
        for part in parts {
            if let Some(id) = part.strip_prefix("prev-id=") {
                token(CHANNEL, id)?;
                once(&mut prev_id, CHANNEL, id.to_owned())?;
            }
        }
        if channels.len() == CHANNELS_MAX {
            return Err(GripError::TooLong { header: CHANNEL });
        }
        channels.push(HoldChannel { name: name.to_owned(), prev_id });
    }
    Ok(())
}

/// `data; format=cstring; timeout=seconds`. A semicolon within the data is escaped.
fn read_keep_alive(value: &str) -> Result<KeepAlive, GripError> {
    const INVALID: GripError = GripError::Value { header: KEEP_ALIVE };
    bounded_keep_alive(value)?;
    let end = unescaped_semicolon(value).unwrap_or(value.len());
    let (data, parameters) = value.split_at(end);
    let (mut escaped, mut timeout_s) = (None, None);
    for parameter in parameters.split(';').map(str::trim).filter(|parameter| !parameter.is_empty()) {
        match parameter.split_once('=') {
            Some(("format", "cstring")) => once(&mut escaped, KEEP_ALIVE, true)?,
            Some(("format", "raw")) => once(&mut escaped, KEEP_ALIVE, false)?,
            Some(("timeout", seconds)) if seconds.bytes().all(|byte| byte.is_ascii_digit()) => {
                once(&mut timeout_s, KEEP_ALIVE, seconds.parse::<u64>().map_err(|_| INVALID)?)?;
            }
            _ => return Err(INVALID),
        }
    }
    let data = match escaped {
        Some(true) => unescape(data).ok_or(INVALID)?,
        _ => data.as_bytes().to_vec(),
    };
    // The default of Pushpin.
    const TIMEOUT_S_DEFAULT: u64 = 55;
    let timeout_s = timeout_s.unwrap_or(TIMEOUT_S_DEFAULT);
    if data.is_empty() || timeout_s == 0 {
        return Err(INVALID);
    }
    if data.len() > VALUE_BYTES_MAX || timeout_s > KEEP_ALIVE_S_MAX {
        return Err(GripError::TooLong { header: KEEP_ALIVE });
    }
    Ok(KeepAlive { data, timeout: Duration::from_secs(timeout_s) })
}

/// Escaped data is at most twice as long, and its parameters are short.
fn bounded_keep_alive(value: &str) -> Result<(), GripError> {
    const PARAMETERS_BYTES_MAX: usize = 128;
    if value.len() > 2 * VALUE_BYTES_MAX + PARAMETERS_BYTES_MAX {
        return Err(GripError::TooLong { header: KEEP_ALIVE });
    }
    Ok(())
}

fn unescaped_semicolon(value: &str) -> Option<usize> {
    let mut escaped = false;
    value.bytes().position(|byte| {
        let ends = byte == b';' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

fn escape(data: &[u8]) -> Result<String, GripError> {
    let mut escaped = String::with_capacity(data.len() + 8);
    for byte in data {
        match byte {
            b'\r' => escaped += "\\r",
            b'\n' => escaped += "\\n",
            b'\\' => escaped += "\\\\",
            b';' => escaped += "\\;",
            0x20..=0x7e => escaped.push(*byte as char),
            _ => return Err(GripError::Value { header: KEEP_ALIVE }),
        }
    }
    // White space around the value of a header is removed by its reader.
    if escaped.starts_with(' ') || escaped.ends_with(' ') {
        return Err(GripError::Value { header: KEEP_ALIVE });
    }
    Ok(escaped)
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut data = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        data.push(match byte {
            b'\\' => match bytes.next()? {
                b'r' => b'\r',
                b'n' => b'\n',
                b't' => b'\t',
                escaped @ (b'\\' | b';') => escaped,
                _ => return None,
            },
            byte => byte,
        });
    }
    Some(data)
}

fn read_link(value: &str) -> Result<String, GripError> {
    const INVALID: GripError = GripError::Value { header: LINK };
    let (link, parameters) = value.strip_prefix('<').and_then(|rest| rest.split_once('>')).ok_or(INVALID)?;
    bounded(LINK, link)?;
    let next = parameters.split(';').any(|parameter| matches!(parameter.trim(), "rel=next" | "rel=\"next\""));
    if next && is_path(link) { Ok(link.to_owned()) } else { Err(INVALID) }
}

/// True for a path of this server, with or without a query. `//` would name another server.
fn is_path(link: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'<' | b'>');
    link.starts_with('/') && !link.starts_with("//") && link.bytes().all(is_allowed)
}

fn read_status(value: &str) -> Result<u16, GripError> {
    let status = (value.len() == 3).then(|| value.parse().ok()).flatten();
    status.filter(|status| (200..=599).contains(status)).ok_or(GripError::Value { header: STATUS })
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    fn channel(name: &str, prev_id: Option<&str>) -> HoldChannel {
        HoldChannel { name: name.to_owned(), prev_id: prev_id.map(str::to_owned) }
    }

    fn hold() -> Hold {
        Hold {
            mode: HoldMode::Stream,
            channels: vec![channel("workflow:42", Some("e-7")), channel("user:ann", None)],
            keep_alive: Some(KeepAlive { data: b":;\\\r\n\n".to_vec(), timeout: Duration::from_secs(15) }),
            link: Some("/stream/workflow/42?last_event_id=e-7".to_owned()),
            status: Some(200),
        }
    }

    fn read(headers: &[(&str, &str)]) -> Result<Option<Hold>, GripError> {
        Hold::from_headers(headers.iter().map(|(name, value)| (*name, value.as_bytes())))
    }

    #[test]
    fn hold_written_as_headers_reads_back() {
        let headers = hold().to_headers().unwrap();
        let text: String = headers.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
        expect![[r#"
            grip-hold: stream
            grip-channel: workflow:42; prev-id=e-7
            grip-channel: user:ann
            grip-keep-alive: :\;\\\r\n\n; format=cstring; timeout=15
            grip-link: </stream/workflow/42?last_event_id=e-7>; rel=next
            grip-status: 200
        "#]]
        .assert_eq(&text);
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(read(&headers), Ok(Some(hold())));
    }

    #[test]
    fn hold_headers_of_other_implementations_are_read() {
        assert_eq!(read(&[("content-type", "text/plain"), ("grip-channel", "a")]), Ok(None));
        let read = read(&[
            ("Grip-Hold", "response"),
            ("GRIP-CHANNEL", "a , b; filter=skip-self; prev-id=1"),
            ("Grip-Keep-Alive", "\\n; format=cstring"),
            ("Grip-Link", "</next>; rel=\"next\"; timeout=120"),
        ]);
        let hold = read.unwrap().unwrap();
        assert_eq!(hold.mode, HoldMode::Response);
        assert_eq!(hold.channels, [channel("a", None), channel("b", Some("1"))]);
        assert_eq!(hold.keep_alive, Some(KeepAlive { data: b"\n".to_vec(), timeout: Duration::from_secs(55) }));
        assert_eq!(hold.link.as_deref(), Some("/next"));
    }

    fn refused(name: &str, value: &str, want: Expect) {
        let headers = [("grip-hold", "stream"), ("grip-channel", "a"), (name, value)];
        want.assert_eq(&read(&headers[usize::from(name == "grip-hold")..]).unwrap_err().to_string());
    }

    #[test]
    fn malformed_hold_headers_are_errors() {
        refused(
            "grip-hold",
            "streaming",
            expect!["the value of `grip-hold` has a character that it must not have, or is empty"],
        );
        refused(
            "grip-channel",
            "",
            expect!["the value of `grip-channel` has a character that it must not have, or is empty"],
        );
        refused("grip-channel", "b; prev-id=1; prev-id=2", expect!["`grip-channel` appears twice"]);
        refused("grip-channel", &"b,".repeat(64), expect!["`grip-channel` is over its bound"]);
        refused("grip-channel", &"b".repeat(1025), expect!["`grip-channel` is over its bound"]);
        refused(
            "grip-keep-alive",
            "\\x; format=cstring",
            expect!["the value of `grip-keep-alive` has a character that it must not have, or is empty"],
        );
        refused(
            "grip-keep-alive",
            "x; timeout=0",
            expect!["the value of `grip-keep-alive` has a character that it must not have, or is empty"],
        );
        refused(
            "grip-keep-alive",
            "x; timeout=99999999999999999999",
            expect!["the value of `grip-keep-alive` has a character that it must not have, or is empty"],
        );
        refused("grip-keep-alive", "x; timeout=3601", expect!["`grip-keep-alive` is over its bound"]);
        refused(
            "grip-link",
            "<//elsewhere/>; rel=next",
            expect!["the value of `grip-link` has a character that it must not have, or is empty"],
        );
        refused(
            "grip-link",
            "</a>",
            expect!["the value of `grip-link` has a character that it must not have, or is empty"],
        );
        refused(
            "grip-status",
            "99",
            expect!["the value of `grip-status` has a character that it must not have, or is empty"],
        );
        assert_eq!(read(&[("grip-hold", "stream")]), Err(GripError::NoChannel));
        let twice = [("grip-hold", "stream"), ("grip-hold", "stream"), ("grip-channel", "a")];
        assert_eq!(read(&twice), Err(GripError::Twice { header: HOLD }));
    }

    #[test]
    fn hold_with_an_invalid_value_is_not_written() {
        let with = |change: &dyn Fn(&mut Hold)| {
            let mut hold = hold();
            change(&mut hold);
            hold.to_headers().unwrap_err()
        };
        for name in ["", "a b", "a;b", "a,b", "a\r\nb", "é", "a\"", "a\0"] {
            assert_eq!(with(&|hold| hold.channels[0].name = name.to_owned()), GripError::Value { header: CHANNEL });
            let prev_id = || Some(name.to_owned());
            assert_eq!(with(&|hold| hold.channels[0].prev_id = prev_id()), GripError::Value { header: CHANNEL });
        }
        for link in ["", "next", "//elsewhere/", "/a>b", "/a\nb", "/a b"] {
            assert_eq!(with(&|hold| hold.link = Some(link.to_owned())), GripError::Value { header: LINK });
        }
        assert_eq!(with(&|hold| hold.channels.clear()), GripError::NoChannel);
        assert_eq!(with(&|hold| hold.status = Some(101)), GripError::Value { header: STATUS });
        let data =
            |data: &[u8], seconds| Some(KeepAlive { data: data.to_vec(), timeout: Duration::from_secs(seconds) });
        for (keep_alive, want) in [
            (data(b"", 15), GripError::Value { header: KEEP_ALIVE }),
            (data(b"x ", 15), GripError::Value { header: KEEP_ALIVE }),
            (data(b"x\0", 15), GripError::Value { header: KEEP_ALIVE }),
            (data(b"x", 0), GripError::Value { header: KEEP_ALIVE }),
            (data(b"x", 3601), GripError::TooLong { header: KEEP_ALIVE }),
            (data(&[b'x'; 1025], 15), GripError::TooLong { header: KEEP_ALIVE }),
        ] {
            assert_eq!(with(&|hold| hold.keep_alive = keep_alive.clone()), want);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_hold_reads_back(
            names in prop::collection::vec(("\\PC{0,4}|[a-z:;,]{1,5}", prop::option::of("[a-z0-9;=-]{0,4}")), 0..4),
            data in "[:;\\\\\r\n a-z]{0,6}",
            timeout_s in 0u64..30,
            link in prop::option::of("/[a-z/<>?=]{0,5}"),
        ) {
            let hold = Hold {
                mode: HoldMode::Stream,
                channels: names.iter().map(|(name, prev_id)| channel(name, prev_id.as_deref())).collect(),
                keep_alive: Some(KeepAlive { data: data.into_bytes(), timeout: Duration::from_secs(timeout_s) }),
                link,
                status: None,
            };
            if let Ok(headers) = hold.to_headers() {
                prop_assert!(headers.iter().all(|(_, value)| value.bytes().all(|byte| (0x20..0x7f).contains(&byte))));
                let read = Hold::from_headers(headers.iter().map(|(name, value)| (*name, value.as_bytes())));
                prop_assert_eq!(read, Ok(Some(hold)));
            }
        }

        #[test]
        fn arbitrary_headers_do_not_panic(
            name in prop::sample::select(vec![HOLD, CHANNEL, KEEP_ALIVE, LINK, STATUS]),
            value in "\\PC{0,20}|[a-z=;,<>/\\\\ 0-9-]{0,20}",
        ) {
            let _ = Hold::from_headers([("grip-hold", b"stream".as_slice()), (name, value.as_bytes())]);
        }
    }
}

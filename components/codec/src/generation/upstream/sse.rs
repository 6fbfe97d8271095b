//! Server-sent events as bytes arrive (the HTML standard, section 9.2): names and data; comments and other fields are passed over.

/// Longest event, bytes.
const EVENT_BYTES_MAX: usize = 1 << 20;

/// An event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) name: String,
    pub(super) data: String,
}

/// Reads events.
#[derive(Debug, Default)]
pub(super) struct SseReader {
    /// The line that has begun.
    line: Vec<u8>,
    /// The last byte was a CR: an LF that follows is part of the same end of line.
    after_cr: bool,
    message: Message,
    has_data: bool,
}

impl SseReader {
    /// Takes bytes; the events that end in them.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Vec<Message>, String> {
        let mut messages = Vec::new();
        for &byte in bytes {
            let is_rest_of_end = self.after_cr && byte == b'\n';
            self.after_cr = byte == b'\r';
            match byte {
                _ if is_rest_of_end => {}
                b'\r' | b'\n' => {
                    let line = std::mem::take(&mut self.line);
                    messages.extend(self.take_line(&line)?);
                }
                byte => self.line.push(byte),
            }
            if self.line.len() + self.message.data.len() > EVENT_BYTES_MAX {
                return Err(format!("the upstream sent an event of more than {EVENT_BYTES_MAX} bytes"));
            }
        }
        Ok(messages)
    }

    fn take_line(&mut self, line: &[u8]) -> Result<Option<Message>, String> {
        if line.is_empty() {
            let message = std::mem::take(&mut self.message);
            return Ok(std::mem::take(&mut self.has_data).then_some(message));
        }
        let line = std::str::from_utf8(line).map_err(|_| "the upstream sent an event that is not UTF-8".to_owned())?;
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.message.data.push('\n');
                }
                self.message.data.push_str(value);
            }
            "event" => value.clone_into(&mut self.message.name),
            // Comments among them.
            _ => {}
        }
        Ok(None)
    }
}

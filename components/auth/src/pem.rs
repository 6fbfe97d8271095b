//! A lenient parser of PEM (RFC 7468): text around the blocks, CR LF, indented lines, and base64 lines of any length
//! are accepted.

use base64ct::{Base64, Encoding as _};

use crate::{
    key::{Key, KeyError},
    key_list::{KeyFile, KeyLocation, SkippedKey},
};

const BEGIN: &str = "-----BEGIN ";
const DASHES: &str = "-----";
/// Most characters of a label in an error.
const LABEL_CHARS_MAX: usize = 40;

/// Whether a text has a line that begins a block.
pub(crate) fn has_block(text: &str) -> bool {
    text.lines().any(|line| label(line).is_some())
}

/// The public keys of a text.
pub(crate) fn read(text: &str) -> KeyFile {
    let mut file = KeyFile { keys: Vec::new(), skipped: Vec::new() };
    let mut lines = text.lines().enumerate().peekable();
    while let Some((at, line)) = lines.next() {
        let Some(label) = label(line) else { continue };
        let end = format!("-----END {label}{DASHES}");
        let (mut base64, mut is_whole) = (String::new(), false);
        // The beginning of another block ends this one, so a block without an end does not hide the next.
        while let Some((_, line)) = lines.next_if(|(_, line)| self::label(line).is_none()) {
            is_whole = line.trim() == end;
            if is_whole {
                break;
            }
            base64.extend(line.split_ascii_whitespace());
        }
        let key = match is_whole {
            true => read_block(label, &base64),
            false => Err(KeyError::PemEnd),
        };
        match key {
            Ok(key) => file.keys.push(key),
            Err(reason) => file.skipped.push(SkippedKey { location: KeyLocation::Line(at + 1), reason }),
        }
    }
    file
}

/// The label of a line that begins a block.
fn label(line: &str) -> Option<&str> {
    line.trim().strip_prefix(BEGIN)?.strip_suffix(DASHES)
}

fn read_block(label: &str, base64: &str) -> Result<Key, KeyError> {
    match label {
        "PUBLIC KEY" => {
            let der = Base64::decode_vec(base64).map_err(|_| KeyError::PemEncoding)?;
            Key::from_der(&der)
        }
        _ if label.ends_with("PRIVATE KEY") => Err(KeyError::Private),
        _ => {
            let label = label.chars().filter(|c| !c.is_control()).take(LABEL_CHARS_MAX).collect::<String>();
            Err(KeyError::PemLabel(label.into()))
        }
    }
}

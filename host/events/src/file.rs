//! A file that gets every event as a line of JSON, rotated by size.
//!
//! A line: `{"type","id","channel","time","data"}`, with the time in milliseconds since 1970; where events were missed,
//! `{"type":"gap","missed":N}`. `FILE` is the newest; when it is full it becomes `FILE.1`, that `FILE.2`, and so on.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::tap::{Tap, Tapped};

/// Where events are written, and how much is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileConfig {
    /// The newest file; its folder must be there.
    pub path: PathBuf,
    /// A file that has so many bytes is rotated.
    pub bytes_max: u64,
    /// Files kept, the newest included; at least 1.
    pub files_max: u32,
}

/// Opens the file and writes what a tap gives to it, on a thread of its own, until the store is gone. What cannot be written is
/// logged, and slows down nobody.
///
/// # Errors
///
/// The file cannot be opened, or no thread started.
pub fn write_events(config: FileConfig, tap: Tap) -> io::Result<()> {
    let rotated = Rotated::open(config)?;
    std::thread::Builder::new().name("weir-events-file".into()).spawn(move || run(rotated, tap)).map(drop)
}

fn run(mut rotated: Rotated, mut tap: Tap) {
    let mut failing = false;
    let mut next = tap.blocking_next();
    while let Some(tapped) = next {
        let mut written = rotated.write(&line(&tapped));
        next = tap.try_next();
        if next.is_none() {
            // Nothing waits: what is written can be read.
            written = written.and_then(|()| rotated.flush());
            next = tap.blocking_next();
        }
        match written {
            Ok(()) => failing = false,
            Err(error) => {
                if !failing {
                    tracing::error!(file = %rotated.config.path.display(), %error, "events cannot be written");
                }
                failing = true;
            }
        }
    }
}

fn line(tapped: &Tapped) -> String {
    match tapped {
        // A name and a channel have no character that JSON escapes; ends of line in data are white space.
        Tapped::Event { channel, entry } => format!(
            "{{\"type\":\"{}\",\"id\":\"{}\",\"channel\":\"{channel}\",\"time\":{},\"data\":{}}}\n",
            entry.name,
            entry.cursor,
            entry.time_ms,
            entry.data.replace(['\n', '\r'], " "),
        ),
        Tapped::Missed(missed) => format!("{{\"type\":\"gap\",\"missed\":{missed}}}\n"),
    }
}

struct Rotated {
    config: FileConfig,
    file: BufWriter<File>,
    bytes: u64,
}

impl Rotated {
    fn open(config: FileConfig) -> io::Result<Self> {
        let file = append_to(&config.path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { config, file: BufWriter::new(file), bytes })
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        if self.bytes > 0 && self.bytes + line.len() as u64 > self.config.bytes_max {
            self.rotate()?;
        }
        self.file.write_all(line.as_bytes())?;
        self.bytes += line.len() as u64;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file.flush()?;
        let path = &self.config.path;
        for older in (1..self.config.files_max).rev() {
            let from = if older == 1 { path.clone() } else { numbered(path, older - 1) };
            match fs::rename(from, numbered(path, older)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if self.config.files_max <= 1 {
            fs::remove_file(path)?;
        }
        self.file = BufWriter::new(append_to(path)?);
        self.bytes = 0;
        Ok(())
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

//! Follows files that grow, are rotated and truncated, like `tail -F`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use weir_core::adapter::SourceRecord;

use super::frames::{Frames, Framing, RECORDS_BYTES, is_packed};
use super::progress::{AfterEnd, FileKey, Progress};

/// The interval at which the patterns are matched again.
const MATCH_INTERVAL: Duration = Duration::from_secs(1);

/// How long a deleted file is read after its last growth: its writer may still have it open.
const DELETED_TIMEOUT: Duration = Duration::from_secs(30);

/// Follows the files that match patterns.
pub(super) struct Follower {
    patterns: Vec<String>,
    framing: Framing,
    progress: Arc<Progress>,
    deleted_timeout: Duration,
    matched: Option<Instant>,
    files: BTreeMap<PathBuf, Followed>,
    /// The file that was read last.
    last: Option<PathBuf>,
    /// Files that were rotated while no adapter followed them; they are read to their end before their successors.
    rotated: Vec<Followed>,
}

/// A file that is followed.
struct Followed {
    path: PathBuf,
    key: FileKey,
    partition: u32,
    frames: Frames,
    /// The position after the last record that was read.
    offset: u64,
    /// When the file was found deleted, and its length then.
    deleted: Option<(Instant, u64)>,
}

impl Followed {
    fn open(path: &Path, file: File, key: FileKey, framing: Framing, progress: &Progress) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let (mut partition, mut offset) = progress.open(&key);
        if offset > length {
            progress.reset(&key);
            (partition, offset) = progress.open(&key);
        }
        let frames = Frames::open(path, file, framing, offset)?;
        Ok(Self { path: path.to_owned(), key, partition, frames, offset, deleted: None })
    }

    /// Whether the file was deleted at least `timeout` ago and has not grown since.
    fn is_deleted(&mut self, timeout: Duration) -> io::Result<bool> {
        let Some(length) = self.frames.length_if_deleted()? else {
            self.deleted = None;
            return Ok(false);
        };
        match self.deleted {
            Some((since, known)) if known == length => Ok(since.elapsed() >= timeout),
            _ => {
                self.deleted = Some((Instant::now(), length));
                Ok(timeout.is_zero())
            }
        }
    }

    /// Marks a file that another has replaced as read to its end.
    fn close(&self, progress: &Progress) {
        progress.close(self.partition, self.offset, AfterEnd::Forgotten);
    }

    /// Adds records until the read is full, or there are no more.
    fn read(&mut self, is_final: bool, read: &mut ReadRecords) -> io::Result<()> {
        while !read.is_full()
            && let Some(frame) = self.frames.next(is_final)?
        {
            self.offset = frame.offset;
            read.bytes += frame.payload.len();
            read.records.push(frame.into_record(&self.key.path, self.partition));
        }
        Ok(())
    }
}

/// The records of a read, and the most of them.
struct ReadRecords {
    records: Vec<SourceRecord>,
    bytes: usize,
    max: usize,
}

impl ReadRecords {
    fn is_full(&self) -> bool {
        self.records.len() >= self.max || self.bytes >= RECORDS_BYTES
    }
}

impl Follower {
    pub(super) fn new(patterns: Vec<String>, framing: Framing, progress: Arc<Progress>) -> Self {
        Self {
            patterns,
            framing,
            progress,
            deleted_timeout: DELETED_TIMEOUT,
            matched: None,
            files: BTreeMap::new(),
            last: None,
            rotated: Vec::new(),
        }
    }

    /// Reads at most `max` of the available records; returns none when there is nothing new.
    pub(super) fn read(&mut self, max: usize) -> io::Result<Vec<SourceRecord>> {
        if self.matched.is_none_or(|matched| matched.elapsed() >= MATCH_INTERVAL) {
            self.matched = Some(Instant::now());
            self.open_matches()?;
        }
        let mut read = ReadRecords { records: Vec::new(), bytes: 0, max };
        while let Some(file) = self.rotated.last_mut() {
            file.read(true, &mut read)?;
            if read.is_full() {
                return Ok(read.records);
            }
            file.close(&self.progress);
            self.rotated.pop();
        }
        for path in self.next_paths() {
            let Some(file) = self.files.get_mut(&path) else { continue };
            self.last = Some(path.clone());
            file.read(false, &mut read)?;
            if read.is_full() {
                break;
            }
            match successor(file)? {
                None if file.is_deleted(self.deleted_timeout)? => {
                    file.read(true, &mut read)?;
                    if read.is_full() {
                        break;
                    }
                    file.close(&self.progress);
                    self.files.remove(&path);
                }
                None => {}
                Some(Successor::Rotated(next, key)) => {
                    // The rest of the rotated file, including a last line without a line end.
                    file.read(true, &mut read)?;
                    if read.is_full() {
                        break;
                    }
                    let next = Followed::open(&path, next, key, self.framing, &self.progress)?;
                    file.close(&self.progress);
                    self.files.insert(path, next);
                }
                Some(Successor::Truncated(next)) => {
                    let key = file.key.clone();
                    self.progress.reset(&key);
                    let next = Followed::open(&path, next, key, self.framing, &self.progress)?;
                    self.files.insert(path, next);
                }
            }
        }
        Ok(read.records)
    }

    /// The paths of the followed files, from the one after that with the last records: a file with many must not delay the others.
    fn next_paths(&self) -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> = self.files.keys().cloned().collect();
        let next = self.last.as_ref().map_or(0, |last| paths.partition_point(|path| path <= last));
        paths.rotate_left(next);
        paths
    }

    /// Opens files that match and are not followed yet.
    fn open_matches(&mut self) -> io::Result<()> {
        for path in matches(&self.patterns)? {
            // A packed file that matches is the copy of one that was rotated.
            if self.files.contains_key(&path) || is_packed(&path) {
                continue;
            }
            let file = match File::open(&path) {
                // It may be created later.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                file => file?,
            };
            let key = FileKey::of(&path, &file)?;
            for replaced in self.progress.replaced(&key) {
                if let Some(old) = find_rotated(&path, &replaced)? {
                    self.rotated.push(Followed::open(&path, old, replaced, self.framing, &self.progress)?);
                }
            }
            let followed = Followed::open(&path, file, key, self.framing, &self.progress)?;
            self.files.insert(path, followed);
        }
        Ok(())
    }
}

/// How a file was replaced.
enum Successor {
    Rotated(File, FileKey),
    Truncated(File),
}

fn successor(file: &Followed) -> io::Result<Option<Successor>> {
    let next = match File::open(&file.path) {
        // The writer has not created the new file yet, and may still write to the old one.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        next => next?,
    };
    let key = FileKey::of(&file.path, &next)?;
    if key != file.key {
        return Ok(Some(Successor::Rotated(next, key)));
    }
    // An incomplete line that was read is of the content before, too.
    let is_truncated = next.metadata()?.len() < file.frames.position();
    Ok(is_truncated.then_some(Successor::Truncated(next)))
}

/// Finds a rotated file in the folder of its path by its identity.
fn find_rotated(path: &Path, key: &FileKey) -> io::Result<Option<File>> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    for entry in std::fs::read_dir(parent)? {
        let entry = entry?;
        let opened = entry.metadata().and_then(|meta| {
            let is_rotated = meta.is_file() && (meta.dev(), meta.ino()) == key.identity;
            is_rotated.then(|| File::open(entry.path())).transpose()
        });
        match opened {
            Ok(None) => {}
            // It was renamed or deleted meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => return opened,
        }
    }
    Ok(None)
}

/// The files that match patterns, in the order of the patterns and of their names. A path without wildcards matches itself.
pub(super) fn matches(patterns: &[String]) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for pattern in patterns {
        if !pattern.contains(['*', '?', '[']) || Path::new(pattern).exists() {
            paths.push(PathBuf::from(pattern));
            continue;
        }
        let invalid = |error: glob::PatternError| io::Error::new(io::ErrorKind::InvalidInput, error.to_string());
        for path in glob::glob(pattern).map_err(invalid)? {
            let path = path.map_err(std::io::Error::from)?;
            if path.is_file() {
                paths.push(path);
            }
        }
    }
    let mut unique = std::collections::BTreeSet::new();
    paths.retain(|path| unique.insert(path.clone()));
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use weir_core::adapter::Commit;

    use super::*;
    use crate::driver::Safe;

    fn append(path: &Path, text: &str) {
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn texts(follower: &mut Follower) -> Vec<String> {
        let records = follower.read(100).unwrap();
        records.into_iter().map(|record| String::from_utf8(record.payload).unwrap()).collect()
    }

    #[test]
    fn growth_rotation_and_truncation_lose_no_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let progress = Arc::new(Progress::load(None).unwrap());
        append(&path, "a\nb");
        let mut follower = Follower::new(vec![path.display().to_string()], Framing::Lines, progress);
        assert_eq!(texts(&mut follower), ["a"]);
        append(&path, "c\n");
        assert_eq!(texts(&mut follower), ["bc"]);
        // The rest of the old file is read, including a last line without a line end, then the new file.
        append(&path, "d\ne");
        std::fs::rename(&path, dir.path().join("log.1")).unwrap();
        append(&path, "f\n");
        assert_eq!(texts(&mut follower), ["d", "e"]);
        assert_eq!(texts(&mut follower), ["f"]);
        std::fs::write(&path, "").unwrap();
        assert_eq!(texts(&mut follower), Vec::<String>::new());
        append(&path, "g\n");
        assert_eq!(texts(&mut follower), ["g"]);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(texts(&mut follower), Vec::<String>::new());
        append(&path, "h\n");
        assert_eq!(texts(&mut follower), Vec::<String>::new());
        assert_eq!(texts(&mut follower), ["h"]);
    }

    #[test]
    fn incomplete_line_before_a_truncation_is_no_part_of_a_line_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        append(&path, "a\nbcd");
        let progress = Arc::new(Progress::load(None).unwrap());
        let mut follower = Follower::new(vec![path.display().to_string()], Framing::Lines, progress);
        assert_eq!(texts(&mut follower), ["a"]);
        // Longer than what is before the incomplete line, and shorter than what was read.
        std::fs::write(&path, "x\ny").unwrap();
        assert_eq!(texts(&mut follower), Vec::<String>::new());
        append(&path, "z\n");
        assert_eq!(texts(&mut follower), ["x", "yz"]);
    }

    #[test]
    fn file_with_many_lines_delays_no_other() {
        let dir = tempfile::tempdir().unwrap();
        for (name, lines) in [("a", "1\n2\n3\n4\n5\n6\n"), ("b", "7\n8\n9\n"), ("c", "10\n")] {
            append(&dir.path().join(name), lines);
        }
        let progress = Arc::new(Progress::load(None).unwrap());
        let mut follower = Follower::new(vec![format!("{}/*", dir.path().display())], Framing::Lines, progress);
        let mut read = || {
            let records = follower.read(2).unwrap();
            records.into_iter().map(|record| String::from_utf8(record.payload).unwrap()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!([read(), read(), read(), read(), read(), read()], ["1 2", "7 8", "10 3", "9 4", "5 6", ""]);
    }

    #[test]
    fn records_of_a_read_are_bounded_by_their_bytes_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let line = "x".repeat(1 << 20) + "\n";
        append(&path, &line.repeat(40));
        let progress = Arc::new(Progress::load(None).unwrap());
        let mut follower = Follower::new(vec![path.display().to_string()], Framing::Lines, progress);
        let mut read = || follower.read(100).unwrap().len();
        assert_eq!([read(), read(), read(), read()], [16, 16, 8, 0]);
    }

    #[test]
    fn packed_files_that_match_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        append(&dir.path().join("log"), "new\n");
        let packed = File::create(dir.path().join("log.1.gz")).unwrap();
        let mut packed = flate2::write::GzEncoder::new(packed, flate2::Compression::default());
        packed.write_all(&b"old\n".repeat(100)).unwrap();
        packed.finish().unwrap();
        let progress = Arc::new(Progress::load(None).unwrap());
        let mut follower = Follower::new(vec![format!("{}/*", dir.path().display())], Framing::Lines, progress);
        assert_eq!(texts(&mut follower), ["new"]);
        assert_eq!(texts(&mut follower), Vec::<String>::new());
    }

    /// Commits everything that the records complete.
    fn commit(progress: &Progress, records: &[SourceRecord]) {
        let commits = records
            .iter()
            .map(|record| Commit { partition: record.position.partition, offset: record.position.offset });
        progress.handle_safe(&Safe { commits: commits.collect(), is_exact: true, ..Safe::default() });
    }

    #[test]
    fn rotated_file_is_forgotten_once_it_is_committed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let progress = Arc::new(Progress::load(None).unwrap());
        append(&path, "0\n");
        let mut follower = Follower::new(vec![path.display().to_string()], Framing::Lines, progress.clone());
        let mut last = Vec::new();
        for round in 1..=20 {
            let records = follower.read(100).unwrap();
            assert_eq!(records.len(), 1, "in round {round}");
            commit(&progress, &last);
            last = records;
            std::fs::rename(&path, dir.path().join(format!("log.{round}"))).unwrap();
            append(&path, &format!("{round}\n"));
            // It finds the new file.
            assert!(follower.read(100).unwrap().is_empty());
        }
        let (partitions, offsets) = progress.sizes();
        assert!(partitions <= 2 && offsets <= 2, "{partitions} partitions and {offsets} offsets after 20 rotations");
    }

    #[test]
    fn deleted_file_is_read_to_its_end_and_closed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let progress = Arc::new(Progress::load(None).unwrap());
        append(&path, "a\n");
        let mut follower = Follower::new(vec![format!("{}/*", dir.path().display())], Framing::Lines, progress.clone());
        assert_eq!(texts(&mut follower), ["a"]);
        let mut writer = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        // Its writer still has it.
        writer.write_all(b"b\nc").unwrap();
        assert_eq!(texts(&mut follower), ["b"]);
        assert_eq!(follower.files.len(), 1);
        follower.deleted_timeout = Duration::ZERO;
        assert_eq!(texts(&mut follower), ["c"]);
        assert!(follower.files.is_empty());
        append(&path, "d\n");
        follower.matched = None;
        assert_eq!(texts(&mut follower), ["d"]);
    }

    #[test]
    fn commit_of_records_before_a_truncation_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let progress = Arc::new(Progress::load(None).unwrap());
        append(&path, "a long first line\n");
        let mut follower = Follower::new(vec![path.display().to_string()], Framing::Lines, progress.clone());
        let before = follower.read(100).unwrap();
        std::fs::write(&path, "").unwrap();
        assert!(follower.read(100).unwrap().is_empty());
        commit(&progress, &before);
        append(&path, "b\nc\nd and more than was there before\n");
        let mut later = Follower::new(vec![path.display().to_string()], Framing::Lines, progress);
        assert_eq!(texts(&mut later), ["b", "c", "d and more than was there before"]);
    }

    #[test]
    fn patterns_match_in_the_order_of_names() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.log", "a.log", "c.txt"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let all = [format!("{}/*.log", dir.path().display()), dir.path().join("a.log").display().to_string()];
        let names: Vec<String> = matches(&all)
            .unwrap()
            .iter()
            .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(names, ["a.log", "b.log"]);
    }
}

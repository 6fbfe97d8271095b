//! A model from the Hugging Face hub.

use std::collections::BTreeSet;
use std::path::Path;

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Repo, RepoType};

use super::source::{ModelSource, Progress, PullError, disk, provenance};

/// The default revision.
const REVISION_DEFAULT: &str = "main";

/// Retries of a download.
const RETRIES_MAX: usize = 2;

pub(super) struct Hub {
    origin: String,
    repository: ApiRepo,
    commit: String,
    files: BTreeSet<String>,
}

impl Hub {
    /// Requests the list of files of the repository. Files are downloaded to `work`, not to the user's cache.
    pub(super) fn open(
        repository: &str,
        revision: Option<&str>,
        endpoint: Option<&str>,
        work: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, PullError> {
        let origin = match revision {
            Some(revision) => format!("hf:{repository}@{revision}"),
            None => format!("hf:{repository}"),
        };
        progress(Progress::Step(format!("asking the hub for {origin}")));
        let mut builder = ApiBuilder::from_env().with_cache_dir(work.join("hub"));
        if let Some(endpoint) = endpoint {
            builder = builder.with_endpoint(endpoint.to_owned());
        }
        let failed = |e: ApiError| failure(&origin, &e);
        let api = builder.with_progress(false).with_retries(RETRIES_MAX).build().map_err(failed)?;
        let at = |revision: String| Repo::with_revision(repository.to_owned(), RepoType::Model, revision);
        let info = api.repo(at(revision.unwrap_or(REVISION_DEFAULT).to_owned())).info().map_err(failed)?;
        if info.sha.len() > 64 || !info.sha.chars().all(|c| c.is_ascii_hexdigit()) {
            return Err(PullError::Refused { origin, reason: "the hub's answer names no commit".to_owned() });
        }
        // Files are requested by commit, so that all are of one state of the repository.
        let repository = api.repo(at(info.sha.clone()));
        let files = info.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        Ok(Self { origin, repository, commit: info.sha, files })
    }
}

impl ModelSource for Hub {
    fn origin(&self) -> String {
        self.origin.clone()
    }

    fn files(&self) -> &BTreeSet<String> {
        &self.files
    }

    fn fetch(
        &mut self,
        name: &str,
        to: &Path,
        bytes_max: u64,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<u64, PullError> {
        let bar = Bar { progress, name: name.to_owned(), bytes: 0, bytes_total: None };
        let fetched = self.repository.download_with_progress(name, bar).map_err(|e| failure(&self.origin, &e))?;
        let fetched = std::fs::canonicalize(&fetched).map_err(disk(&fetched))?;
        let bytes = std::fs::metadata(&fetched).map_err(disk(&fetched))?.len();
        if bytes > bytes_max {
            let reason = format!("{name} has {bytes} bytes, more than the {bytes_max} left for a model");
            return Err(PullError::Refused { origin: self.origin(), reason });
        }
        std::fs::rename(&fetched, to).map_err(disk(to))?;
        Ok(bytes)
    }

    fn provenance(&self) -> serde_json::Value {
        provenance(&self.origin, &[("commit", &self.commit)])
    }
}

struct Bar<'a> {
    progress: &'a mut dyn FnMut(Progress),
    name: String,
    bytes: u64,
    bytes_total: Option<u64>,
}

impl hf_hub::api::Progress for Bar<'_> {
    fn init(&mut self, size: usize, _file: &str) {
        self.bytes_total = Some(size as u64);
    }

    fn update(&mut self, size: usize) {
        self.bytes += size as u64;
        let Self { name, bytes, bytes_total, .. } = self;
        (self.progress)(Progress::File { name: name.clone(), bytes: *bytes, bytes_total: *bytes_total });
    }

    fn finish(&mut self) {}
}

fn failure(origin: &str, error: &ApiError) -> PullError {
    let text = error.to_string();
    let origin = origin.to_owned();
    // The library wraps the client's error and does not export its type: only the text has the status.
    let has_status = |status: &str| text.contains(&format!("http status: {status}"));
    if has_status("404") || has_status("401") || has_status("403") {
        let reason = "the hub has no such repository or revision, or it is private".to_owned();
        PullError::NotFound { origin, reason }
    } else {
        PullError::Unreachable { origin: format!("the hub, for {origin},"), reason: text }
    }
}

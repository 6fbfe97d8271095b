//! The structure of an ONNX graph, and where its weights lie: what the built-in engine reads of a file, and what every reader of one has
//! in common.

pub(crate) mod proto;

use std::fs::File;
use std::io::Read;
use std::path::{Component, Path};

use prost::Message;

use crate::config::RegistryConfig;
use crate::error::LoadError;
use crate::wording::quoted;
use proto::{ModelProto, TensorProto, tensor_proto};

/// Reads the structure of a file, without external data.
pub(crate) fn read(path: &Path, config: &RegistryConfig) -> Result<ModelProto, LoadError> {
    parse(&read_file(path, config.graph_bytes_max)?, &path.display().to_string())
}

/// Reads the structure of a file's content; `origin` names it in errors.
pub(crate) fn parse(content: &[u8], origin: &str) -> Result<ModelProto, LoadError> {
    ModelProto::decode(content)
        .map_err(|e| LoadError::Broken { origin: origin.to_owned(), reason: format!("truncated or not ONNX: {e}") })
}

/// Reads a file of at most `bytes_max` bytes.
pub(crate) fn read_file(path: &Path, bytes_max: u64) -> Result<Vec<u8>, LoadError> {
    let unreadable = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => LoadError::Missing {
            dir: path.parent().unwrap_or(Path::new(".")).to_owned(),
            file: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        },
        _ => LoadError::Unreadable { path: path.to_owned(), reason: e.to_string() },
    };
    let too_large = |reason: String| LoadError::TooLarge { origin: path.display().to_string(), reason };
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(LoadError::Unreadable { path: path.to_owned(), reason: "it is not a file".to_owned() });
    }
    let length = metadata.len();
    if length > bytes_max {
        return Err(too_large(format!("has {length} bytes, more than the {bytes_max} allowed")));
    }
    let mut bytes = Vec::new();
    let reserved = usize::try_from(length).ok().map(|length| bytes.try_reserve_exact(length));
    if !matches!(reserved, Some(Ok(()))) {
        return Err(too_large(format!("has {length} bytes, more than there is memory for")));
    }
    // One byte more: a file that is being written may have grown.
    file.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > bytes_max {
        return Err(too_large(format!("has more than the {bytes_max} bytes allowed")));
    }
    Ok(bytes)
}

/// The location of a tensor's data in a file beside the graph.
pub(crate) struct External {
    /// The file, within the graph's directory.
    pub(crate) location: String,
    /// Its first byte in the file.
    pub(crate) offset: u64,
    /// The length in bytes; `None` for the rest of the file.
    pub(crate) length: Option<u64>,
}

impl External {
    /// Where a tensor lies; none where its data is in the graph.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub(crate) fn of(tensor: &TensorProto) -> Result<Option<Self>, String> {
        if tensor.data_location != Some(tensor_proto::EXTERNAL) {
            return Ok(None);
        }
        let entry = |key: &str| tensor.external_data.iter().find(|e| e.key == key).map(|e| e.value.as_str());
        Self::parse(&tensor.name, entry).map(Some)
    }

    /// Where the tensor `name` lies, by the entries of its `external_data`. The graph may name only files of its own directory, so that
    /// a model cannot read what it was not shipped with; a symbolic link in that directory is its owner's doing and is followed.
    ///
    /// # Errors
    /// When the place is outside of the directory, or not said.
    pub(crate) fn parse<'a>(name: &str, entry: impl Fn(&str) -> Option<&'a str>) -> Result<Self, String> {
        let number = |key: &str| {
            let parse = |text: &str| text.trim().parse::<u64>();
            entry(key)
                .map(parse)
                .transpose()
                .map_err(|_| format!("tensor {name}: {key} is no number", name = quoted(&name)))
        };
        let location = entry("location")
            .ok_or_else(|| format!("tensor {name} is external but does not say where", name = quoted(&name)))?;
        let inside = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
        if location.is_empty() || !Path::new(location).components().all(inside) {
            return Err(format!(
                "tensor {name} lies in {location}, which is not inside the model's directory",
                name = quoted(&name),
                location = quoted(&location)
            ));
        }
        let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
        Ok(Self { location: location.to_owned(), offset, length })
    }
}

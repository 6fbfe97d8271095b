//! A JSON file of a model, read key by key, so that an error names the key.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde_json::{Map, Value};
use weir_kernels::Activation;

use crate::builtin::network::HeadActivation;
use crate::wording::{json_types, quoted};

/// The most layers of a model.
pub(super) const LAYERS_MAX: usize = 1000;
/// The longest text for which distances or positions are computed, in tokens; infer bounds texts by `max_position_embeddings`.
pub(super) const TOKENS_MAX: usize = 1 << 16;

/// The longest of these files, in bytes.
const BYTES_MAX: u64 = 16 << 20;

/// The keys of a file.
#[derive(Debug)]
pub(super) struct Settings(Map<String, Value>);

/// Reads a JSON file; `None` when it does not exist.
pub(super) fn read_json(path: &Path) -> Result<Option<Value>, String> {
    let name = path.file_name().unwrap_or_default().display();
    let mut bytes = Vec::new();
    let opened = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{name} cannot be read: {error}")),
    };
    opened.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| format!("{name} cannot be read: {error}"))?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(format!("{name} has more than {BYTES_MAX} bytes"));
    }
    let text = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&bytes);
    serde_json::from_slice(text)
        .map(Some)
        .map_err(|error| format!("{name} is not valid JSON: {}", json_types(&error.to_string())))
}

impl Settings {
    /// Reads a file.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let name = path.file_name().unwrap_or_default().display();
        match read_json(path)? {
            Some(Value::Object(map)) => Ok(Self(map)),
            Some(_) => Err(format!("{name} is not a JSON object")),
            None => Err(format!("{name} is missing")),
        }
    }

    /// A value that is present and not null.
    pub(super) fn value(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&str>, String> {
        let wrong = |value: &Value| format!("{key}: {value} is not a text");
        self.value(key).map(|value| value.as_str().ok_or_else(|| wrong(value))).transpose()
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, String> {
        let wrong = |value: &Value| format!("{key}: {value} is neither true nor false");
        self.value(key).map(|value| value.as_bool().ok_or_else(|| wrong(value))).transpose()
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<usize>, String> {
        let read = |value: &Value| {
            let number = value.as_u64().filter(|number| *number <= u64::from(u32::MAX));
            number
                .map(|number| number as usize)
                .ok_or_else(|| format!("{key}: {value} is not a number from 0 to {}", u32::MAX))
        };
        self.value(key).map(read).transpose()
    }

    pub(super) fn required(&self, key: &str) -> Result<usize, String> {
        match self.number(key)? {
            Some(0) => Err(format!("{key} is 0")),
            Some(number) => Ok(number),
            None => Err(format!("{key} is missing")),
        }
    }

    /// A number from 1 to a bound.
    pub(super) fn bounded(&self, key: &str, max: usize) -> Result<usize, String> {
        match self.required(key)? {
            number if number <= max => Ok(number),
            number => Err(format!("{key} = {number} is more than {max}")),
        }
    }

    pub(super) fn real(&self, key: &str) -> Result<Option<f32>, String> {
        let read = |value: &Value| {
            let number = value.as_f64().filter(|number| number.is_finite());
            number.map(|number| number as f32).ok_or_else(|| format!("{key}: {value} is not a number"))
        };
        self.value(key).map(read).transpose()
    }

    /// Refuses any value but the supported one; an absent key is accepted.
    pub(super) fn only(&self, key: &str, supported: &Value) -> Result<(), String> {
        match self.value(key) {
            Some(value) if value != supported => Err(format!("{key} = {value} is not supported")),
            _ => Ok(()),
        }
    }

    /// An activation function of a feed-forward network; GELU where the key is absent.
    pub(super) fn activation(&self, key: &str) -> Result<Activation, String> {
        Ok(match self.text(key)? {
            None | Some("gelu" | "gelu_python") => Activation::Gelu,
            Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_accurate") => Activation::GeluTanh,
            Some("relu") => Activation::Relu,
            Some("silu" | "swish") => Activation::Silu,
            Some(other) => return Err(format!("{key} = {other} is not supported", other = quoted(&other))),
        })
    }

    /// An activation function of a head.
    pub(super) fn head_activation(&self, key: &str) -> Result<HeadActivation, String> {
        match self.text(key)? {
            Some("tanh") => Ok(HeadActivation::Tanh),
            _ => self.activation(key).map(HeadActivation::Kernel),
        }
    }
}

//! The devices that compute graphs.

use std::fmt;
use std::str::FromStr;

use weir_core::nearest::suggestion;

use crate::wording::quoted;

/// A device that computes graphs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// A GPU of NVIDIA, by its number in CUDA.
    Cuda(u16),
}

/// The configured device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceChoice {
    /// The first GPU if it can compute the model, else the processor.
    Auto,
    /// This device; that it cannot compute the model is an error.
    Only(Device),
}

/// The names of a [`DeviceChoice`].
const DEVICES: [&str; 4] = ["cpu", "cuda", "cuda:N", "auto"];

/// A name that is not that of a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no device named {}{}; the devices are: {}", quoted(.0), suggestion(similar(.0), &DEVICES), DEVICES.join(", "))]
pub struct UnknownDevice(String);

/// The name to which others are compared: `gpu` is one letter from `cpu`, and means the other.
fn similar(name: &str) -> &str {
    if name.eq_ignore_ascii_case("gpu") { "cuda" } else { name }
}

impl Default for DeviceChoice {
    fn default() -> Self {
        Self::Only(Device::Cpu)
    }
}

impl FromStr for DeviceChoice {
    type Err = UnknownDevice;

    fn from_str(name: &str) -> Result<Self, UnknownDevice> {
        let number = name.strip_prefix("cuda:").filter(|number| number.bytes().all(|byte| byte.is_ascii_digit()));
        match (name, number.and_then(|number| number.parse().ok())) {
            ("auto", _) => Ok(Self::Auto),
            ("cpu", _) => Ok(Self::Only(Device::Cpu)),
            ("cuda", _) => Ok(Self::Only(Device::Cuda(0))),
            (_, Some(number)) => Ok(Self::Only(Device::Cuda(number))),
            _ => Err(UnknownDevice(name.to_owned())),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Only(device) => device.fmt(f),
        }
    }
}

impl Device {
    /// The most tokens that a run should have: larger batches are not faster per token, and requests that arrive during a run wait
    /// for its end.
    pub fn batch_tokens(self) -> u32 {
        match self {
            Self::Cpu => 128,
            Self::Cuda(_) => 4096,
        }
    }

    /// The replicas of a model that use the device fully: one for each core of the processor; for a GPU two, of which one prepares its
    /// next batch while that of the other is computed.
    pub fn replicas(self) -> usize {
        match self {
            Self::Cpu => std::thread::available_parallelism().map_or(1, usize::from),
            Self::Cuda(_) => 2,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    #[test]
    fn names_are_parsed_and_others_refused_with_a_suggestion() {
        for (name, shown) in
            [("cpu", "cpu"), ("cuda", "cuda:0"), ("cuda:0", "cuda:0"), ("cuda:3", "cuda:3"), ("auto", "auto")]
        {
            assert_eq!(name.parse::<DeviceChoice>().unwrap().to_string(), shown);
        }
        let refused = |name: &str, expected: Expect| {
            expected.assert_eq(&name.parse::<DeviceChoice>().unwrap_err().to_string());
        };
        refused(
            "gpu",
            expect![[
                r#"there is no device named "gpu" (did you mean `cuda`?); the devices are: cpu, cuda, cuda:N, auto"#
            ]],
        );
        refused("cdua", expect![[r#"there is no device named "cdua"; the devices are: cpu, cuda, cuda:N, auto"#]]);
        for name in ["cuda:", "cuda:x", "cuda:+1", "cuda:-1", "cuda:70000", "CUDA", ""] {
            assert!(name.parse::<DeviceChoice>().is_err(), "{name}");
        }
    }

    #[test]
    fn batches_and_replicas_are_those_of_the_device() {
        assert!(Device::Cuda(0).batch_tokens() >= 1000 && Device::Cpu.batch_tokens() == 128);
        assert_eq!(Device::Cuda(1).replicas(), 2);
        assert!(Device::Cpu.replicas() >= 1);
    }
}

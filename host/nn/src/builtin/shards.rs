//! The index of a model whose weights are in several files: `model.safetensors.index.json` names the file of each tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Component, Path};

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::safetensors::TENSORS_MAX;
use crate::wording::quoted;

/// The end of an index's name.
const SUFFIX: &str = ".safetensors.index.json";
/// The longest index, in bytes.
const BYTES_MAX: u64 = 32 << 20;
/// The most files of one model.
const FILES_MAX: usize = 128;

/// Whether this is the path of an index.
pub(super) fn is_index(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(SUFFIX))
}

/// An index. Its files are in the folder of the index.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ShardIndex {
    files: Vec<String>,
    /// The number of each tensor's file in `files`.
    file_of: BTreeMap<String, usize>,
}

impl ShardIndex {
    /// Reads an index.
    ///
    /// # Errors
    /// When it cannot be read or is invalid, in one clause.
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|file| file.take(BYTES_MAX + 1).read_to_end(&mut bytes));
        read.map_err(|error| format!("it cannot be read: {error}"))?;
        Self::parse(&bytes)
    }

    /// Parses the content of an index.
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() as u64 > BYTES_MAX {
            return Err(format!("it has more than {BYTES_MAX} bytes"));
        }
        let RawIndex { weight_map: WeightMap(map) } =
            serde_json::from_slice(bytes).map_err(|error| format!("the index is not as it must be: {error}"))?;
        let names: BTreeSet<&String> = map.values().collect();
        if names.is_empty() {
            return Err("the index has no tensors".to_owned());
        }
        if names.len() > FILES_MAX {
            return Err(format!("the index has {} files, more than {FILES_MAX}", names.len()));
        }
        // The names are not trusted: each file must be in the folder of the index.
        if let Some(name) = names.iter().find(|name| !is_shard(name)) {
            return Err(format!("{} is no safetensors file in the model's directory", quoted(name)));
        }
        let files: Vec<String> = names.into_iter().cloned().collect();
        let number = |name: &String| files.binary_search(name).unwrap_or_default();
        let file_of = map.iter().map(|(tensor, name)| (tensor.clone(), number(name))).collect();
        Ok(Self { files, file_of })
    }

    /// The names of the files, sorted.
    pub(crate) fn files(&self) -> &[String] {
        &self.files
    }

    /// Checks that each tensor is in its file; `file_of` is the number of the file that has a tensor.
    pub(super) fn check(&self, file_of: impl Fn(&str) -> Option<usize>) -> Result<(), String> {
        match self.file_of.iter().find(|(tensor, file)| file_of(tensor) != Some(**file)) {
            None => Ok(()),
            Some((tensor, file)) => Err(format!("tensor {} is not in {}", quoted(tensor), self.files[*file])),
        }
    }
}

/// Whether this is the name of a safetensors file, without folders.
fn is_shard(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let is_plain = matches!(parts.next(), Some(Component::Normal(part)) if part == name) && parts.next().is_none();
    is_plain && name.ends_with(".safetensors") && !name.contains(['\\', '\0'])
}

#[derive(Deserialize)]
struct RawIndex {
    weight_map: WeightMap,
}

/// The file of each tensor; a tensor that occurs twice is an error.
struct WeightMap(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with the file of each tensor")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
                let mut names = BTreeMap::new();
                while let Some((tensor, name)) = map.next_entry::<String, String>()? {
                    if names.len() == TENSORS_MAX {
                        return Err(A::Error::custom(format_args!("more than {TENSORS_MAX} tensors")));
                    }
                    if names.insert(tensor.clone(), name).is_some() {
                        return Err(A::Error::custom(format_args!("tensor {} is there twice", quoted(&tensor))));
                    }
                }
                Ok(WeightMap(names))
            }
        }
        deserializer.deserialize_map(Names)
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = r#"{"metadata":{"total_size":12},"weight_map":{"b":"m-2.safetensors","a":"m-1.safetensors","c":"m-1.safetensors"}}"#;

    #[test]
    fn index_gives_the_file_of_each_tensor() {
        let index = ShardIndex::parse(GOOD.as_bytes()).unwrap();
        assert_eq!(index.files(), ["m-1.safetensors", "m-2.safetensors"]);
        index.check(|tensor| Some(usize::from(tensor == "b"))).unwrap();
        let error = index.check(|tensor| (tensor != "c").then_some(usize::from(tensor == "b"))).unwrap_err();
        expect![[r#"tensor "c" is not in m-1.safetensors"#]].assert_eq(&error);
    }

    #[test]
    fn invalid_index_is_refused_with_the_reason() {
        let check = |text: &str, expected: Expect| {
            expected.assert_eq(&ShardIndex::parse(text.as_bytes()).unwrap_err());
        };
        check("{}", expect!["the index is not as it must be: missing field `weight_map` at line 1 column 2"]);
        check(r#"{"weight_map":{}}"#, expect!["the index has no tensors"]);
        check(
            r#"{"weight_map":[]}"#,
            expect![
                "the index is not as it must be: invalid type: sequence, expected an object with the file of each tensor at line 1 column 14"
            ],
        );
        check(
            r#"{"weight_map":{"a":"m.safetensors","a":"n.safetensors"}}"#,
            expect![[r#"the index is not as it must be: tensor "a" is there twice at line 1 column 55"#]],
        );
        for name in
            ["../m.safetensors", "/m.safetensors", "x/m.safetensors", "./m.safetensors", "m.safetensors/", "m.bin", ""]
        {
            let error = ShardIndex::parse(format!(r#"{{"weight_map":{{"a":"{name}"}}}}"#).as_bytes()).unwrap_err();
            assert_eq!(error, format!("{name:?} is no safetensors file in the model's directory"));
        }
        let many: Vec<String> = (0..=FILES_MAX).map(|number| format!(r#""{number}":"{number}.safetensors""#)).collect();
        check(
            &format!(r#"{{"weight_map":{{{}}}}}"#, many.join(",")),
            expect!["the index has 129 files, more than 128"],
        );
    }

    proptest! {
        #[test]
        fn changed_bytes_never_give_a_file_outside_the_folder(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
            let mut text = GOOD.as_bytes().to_vec();
            for (index, byte) in changes {
                let index = index.index(text.len());
                text[index] = byte;
            }
            if let Ok(index) = ShardIndex::parse(&text) {
                for file in index.files() {
                    let path = Path::new("x").join(file);
                    prop_assert_eq!(path.parent(), Some(Path::new("x")));
                }
            }
        }
    }
}

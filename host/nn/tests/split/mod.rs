//! Splits weights into several files with an index, as `save_pretrained` does for large models.

use serde_json::{Map, Value, json};

/// Splits the content of a `model.safetensors`: its tensors are distributed by turns. Returns the files and the index, with their names.
pub(super) fn split(file: &[u8], shards: usize) -> Vec<(String, Vec<u8>)> {
    let (length, rest) = file.split_first_chunk().unwrap();
    let (header, values) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let header: Map<String, Value> = serde_json::from_slice(header).unwrap();
    let mut parts = vec![(Map::new(), Vec::new()); shards];
    let mut weight_map = Map::new();
    let name = |shard: usize| format!("model-{:05}-of-{shards:05}.safetensors", shard + 1);
    let tensors = header.into_iter().filter(|(name, _)| name != "__metadata__");
    for (number, (tensor, mut entry)) in tensors.enumerate() {
        let shard = number % shards;
        let (header, data) = &mut parts[shard];
        let offset = |index: usize| entry["data_offsets"][index].as_u64().unwrap() as usize;
        let bytes = &values[offset(0)..offset(1)];
        let begin = data.len();
        data.extend_from_slice(bytes);
        entry["data_offsets"] = json!([begin, data.len()]);
        header.insert(tensor.clone(), entry);
        weight_map.insert(tensor, name(shard).into());
    }
    let content = |(header, data): (Map<String, Value>, Vec<u8>)| {
        let header = serde_json::to_vec(&header).unwrap();
        [&(header.len() as u64).to_le_bytes(), &header[..], &data[..]].concat()
    };
    let mut files: Vec<_> = parts.into_iter().enumerate().map(|(shard, part)| (name(shard), content(part))).collect();
    let index = json!({ "metadata": { "total_size": values.len() }, "weight_map": weight_map });
    files.push(("model.safetensors.index.json".to_owned(), serde_json::to_vec(&index).unwrap()));
    files
}

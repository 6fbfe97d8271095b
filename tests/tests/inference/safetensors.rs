//! Models in the form of the Hugging Face hub: `model.safetensors` and a tokenizer, without an ONNX graph, through the built components.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weir_config::{Config, Model};
use weir_runtime::types::{Aggregation, EmbedOptions, Failure, Item, Output, Task, TokenOptions};
use weir_tests::texts::{classify_item, run_items, runtime};
use weir_tests::{copy_tree, root};

/// The size of the embedding tables of the small models.
const VOCABULARY: u64 = 64;

/// A copy of a model with random weights, with the first entries of the vocabulary of a toy model.
fn model(name: &str, into: &Path) -> Result<PathBuf> {
    let path = into.join(name);
    copy_tree(&root().join("tests/architectures").join(name), &path)?;
    let toy = root().join("tests/models/pair-toy");
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(toy.join("tokenizer.json"))?)?;
    let vocabulary = tokenizer["model"]["vocab"].as_object_mut().context("a vocabulary")?;
    vocabulary.retain(|_, id| id.as_u64().is_some_and(|id| id < VOCABULARY));
    std::fs::write(path.join("tokenizer.json"), serde_json::to_vec(&tokenizer)?)?;
    std::fs::copy(toy.join("tokenizer_config.json"), path.join("tokenizer_config.json"))?;
    Ok(path)
}

const TEXTS: [&str; 4] = ["a quick brown fox", "the fox", "it is a good day for the dog and the fox", "no"];

#[tokio::test(flavor = "multi_thread")]
async fn classifiers_and_embeddings_are_served_without_a_graph() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut config = Config::default();
    config.models.replicas = 1;
    let classifiers = [
        ("nlptown-bert-base-multilingual-uncased-sentiment", 5),
        ("distilbert-base-uncased-finetuned-sst-2-english", 2),
        ("cardiffnlp-twitter-roberta-base-sentiment-latest", 3),
        ("deberta-v3", 3),
        ("modernbert", 3),
    ];
    for name in classifiers.iter().map(|(name, _)| *name).chain(["minilm-mean", "bert-states", "electra-tokens"]) {
        config.model.insert(name.into(), Model { path: model(name, folder.path())?, ..Default::default() });
    }
    let runtime = runtime(&config, "infer")?;
    for (name, labels) in classifiers {
        runtime.settled(name).await.map_err(anyhow::Error::msg)?;
        let mut alone = Vec::new();
        for text in TEXTS {
            alone.push(scores(run_items(&runtime, vec![classify_item(0, name, text)]).await?.remove(&0))?);
        }
        ensure!(alone.iter().all(|scores| scores.len() == labels), "{name}: {alone:?}");
        ensure!(alone.iter().all(|scores| (scores.iter().sum::<f32>() - 1.0).abs() < 1e-5), "{name}: {alone:?}");
        ensure!(alone[0] != alone[1], "{name}: {alone:?}");
        let together =
            run_items(&runtime, (0..).zip(TEXTS).map(|(id, text)| classify_item(id, name, text)).collect()).await?;
        for (id, result) in together {
            ensure!(scores(Some(result))? == alone[id as usize], "{name}: a batch changed the result of text {id}");
        }
    }
    // The second text of a pair has another token type.
    let pair = |second: &str| Item { text_pair: Some(second.into()), ..classify_item(0, classifiers[0].0, TEXTS[0]) };
    let one = scores(run_items(&runtime, vec![pair(TEXTS[1])]).await?.remove(&0))?;
    let other = scores(run_items(&runtime, vec![pair(TEXTS[3])]).await?.remove(&0))?;
    ensure!(one != other, "{one:?}");
    for name in ["minilm-mean", "bert-states"] {
        runtime.settled(name).await.map_err(anyhow::Error::msg)?;
        let item = Item { task: Task::Embed(EmbedOptions { normalize: true }), ..classify_item(0, name, TEXTS[0]) };
        let result = run_items(&runtime, vec![item]).await?.remove(&0).context("a result")?;
        let Ok(Output::Embedding(vector)) = result else { anyhow::bail!("{name}: {result:?}") };
        let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        ensure!(vector.len() == 24 && (length - 1.0).abs() < 1e-5, "{name}: {vector:?}");
    }
    let options = TokenOptions { aggregation: Aggregation::None, ignore_labels: Vec::new(), stride: None };
    runtime.settled("electra-tokens").await.map_err(anyhow::Error::msg)?;
    let item = Item { task: Task::Tokens(options), ..classify_item(0, "electra-tokens", TEXTS[0]) };
    let result = run_items(&runtime, vec![item]).await?.remove(&0).context("a result")?;
    let Ok(Output::Entities(entities)) = result else { anyhow::bail!("{result:?}") };
    ensure!(!entities.is_empty(), "{entities:?}");
    Ok(())
}

/// The scores, ordered by the names of their labels.
fn scores(result: Option<Result<Output, Failure>>) -> Result<Vec<f32>> {
    let result = result.context("a result")?;
    let Ok(Output::Labels(mut labels)) = result else { anyhow::bail!("no labels: {result:?}") };
    labels.sort_by(|one, other| one.label.cmp(&other.label));
    Ok(labels.into_iter().map(|label| label.score).collect())
}

//! Model directories: the settings that are read, and the error of each invalid one.
#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]

mod graphs;

use std::path::Path;

use expect_test::{Expect, expect};
use graphs::Dt;
use weir_nn::model::{ModelDir, check, list};
use weir_nn::{Choices, Device, DeviceChoice, Engine, EngineChoice, RegistryConfig, Selection};

const BERT: &str = r#"{"model_type":"bert","architectures":["BertForSequenceClassification"],
    "id2label":{"0":"negative","1":"neutral","2":"positive"},"max_position_embeddings":512,"pad_token_id":0}"#;

fn write(dir: &Path, files: &[(&str, &str)]) {
    for (file, content) in files {
        std::fs::create_dir_all(dir.join(file).parent().unwrap()).unwrap();
        std::fs::write(dir.join(file), content).unwrap();
    }
}

fn describe(dir: &Path) -> String {
    match ModelDir::open(dir) {
        Ok(m) => format!(
            "{} {:?} {:?} {:?} {:?} tokens_max {} pad {}",
            m.task, m.model_type, m.labels, m.problem_type, m.function_to_apply, m.tokens_max, m.pad_token_id
        ),
        Err(error) => error.to_string().replace(&dir.display().to_string(), "DIR"),
    }
}

/// Opens a directory with these files, and a tokenizer and a graph by default.
fn check_open(files: &[(&str, &str)], expected: Expect) {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[("tokenizer.json", "{}"), ("model.onnx", "graph")]);
    write(dir.path(), files);
    expected.assert_eq(&describe(dir.path()));
}

fn check_config(config: &str, expected: Expect) {
    check_open(&[("config.json", config)], expected);
}

#[test]
fn directory_describes_its_model() {
    check_config(
        BERT,
        expect![[r#"text-classification "bert" ["negative", "neutral", "positive"] None None tokens_max 512 pad 0"#]],
    );
    check_open(
        &[
            (
                "config.json",
                r#"{"model_type":"roberta","architectures":["RobertaForTokenClassification"],"id2label":{"1":"B","0":"O"},"max_position_embeddings":514,"pad_token_id":1,"problem_type":"ignored"}"#,
            ),
            ("tokenizer_config.json", r#"{"model_max_length":1000000000000000019884624838656}"#),
        ],
        expect![[r#"token-classification "roberta" ["O", "B"] None None tokens_max 512 pad 1"#]],
    );
    check_open(
        &[
            ("config.json", r#"{"model_type":"bert","architectures":["BertModel"],"max_position_embeddings":512}"#),
            (
                "tokenizer_config.json",
                r#"{"model_max_length":256,"pad_token":"[PAD]","added_tokens_decoder":{"7":{"content":"[PAD]"}}}"#,
            ),
            ("sentence_bert_config.json", r#"{"max_seq_length":128}"#),
        ],
        expect![[r#"feature-extraction "bert" [] None None tokens_max 128 pad 7"#]],
    );
    check_config(
        r#"{"architectures":["XForSequenceClassification"],"problem_type":"multi_label_classification","function_to_apply":"none","max_position_embeddings":-1}"#,
        expect![[r#"text-classification "" ["LABEL_0", "LABEL_1"] Some(MultiLabel) Some(None) tokens_max 512 pad 0"#]],
    );
    check_config(
        r#"{"architectures":["XForSequenceClassification"],"label2id":{"b":1,"a":0},"problem_type":"regression"}"#,
        expect![[r#"text-classification "" ["a", "b"] Some(Regression) None tokens_max 512 pad 0"#]],
    );
    check_config(
        r#"{"architectures":["XForSequenceClassification"],"num_labels":1}"#,
        expect![[r#"text-classification "" ["LABEL_0"] None None tokens_max 512 pad 0"#]],
    );
}

#[test]
fn invalid_directory_is_an_error_with_the_reason() {
    expect!["DIR: there is no such directory"]
        .assert_eq(&describe(Path::new("/does/not/exist")).replace("/does/not/exist", "DIR"));
    let dir = tempfile::tempdir().unwrap();
    expect!["DIR: config.json is missing"].assert_eq(&describe(dir.path()));
    write(dir.path(), &[("config.json", BERT)]);
    expect!["DIR: tokenizer.json is missing"].assert_eq(&describe(dir.path()));
    write(dir.path(), &[("tokenizer.json", "{\"model\":\n{")]);
    expect!["DIR: tokenizer.json is not valid JSON: it ends in the middle of an object at line 2 column 1"]
        .assert_eq(&describe(dir.path()));
    write(dir.path(), &[("tokenizer.json", "{}")]);
    expect!["DIR: model.safetensors, model.onnx or onnx/model.onnx is missing"].assert_eq(&describe(dir.path()));
    write(dir.path(), &[("onnx/model.onnx", "graph")]);
    assert_eq!(ModelDir::open(dir.path()).unwrap().graph, dir.path().join("onnx/model.onnx"));
    std::fs::remove_file(dir.path().join("config.json")).unwrap();
    std::fs::create_dir(dir.path().join("config.json")).unwrap();
    expect!["DIR: config.json cannot be read: Is a directory (os error 21)"].assert_eq(&describe(dir.path()));

    check_config(
        "",
        expect!["DIR: config.json is not valid JSON: it ends in the middle of a value at line 1 column 0"],
    );
    check_config("{\n \"a\":1,\n}", expect!["DIR: config.json is not valid JSON: trailing comma at line 3 column 1"]);
    check_config("[1]", expect!["DIR: config.json: a list, where a JSON object is required"]);
    check_config(
        r#"{"id2label":["a"]}"#,
        expect!["DIR: config.json is not valid JSON: invalid type: an array, expected an object at line 1 column 12"],
    );
    let labels = |id2label: &str| format!(r#"{{"architectures":["XForTokenClassification"],{id2label}}}"#);
    check_config(&labels(r#""id2label":{"0":"a","2":"b"}"#), expect!["DIR: config.json: id2label has no label 1"]);
    check_config(&labels(r#""id2label":{"x":"a"}"#), expect![[r#"DIR: config.json: id2label: "x" is no label id"#]]);
    check_config(&labels(r#""id2label":{}"#), expect!["DIR: config.json: id2label is empty"]);
    check_config(&labels(r#""label2id":{"a":-1}"#), expect!["DIR: config.json: label2id: -1 is no label id"]);
    check_config(
        &labels(r#""num_labels":18446744073709551615"#),
        expect!["DIR: config.json: num_labels: 18446744073709551615 is more than 100000"],
    );
    check_config(
        r#"{"max_position_embeddings":0}"#,
        expect!["DIR: config.json: max_position_embeddings: 0 is no length"],
    );
    check_config(
        r#"{"model_type":"roberta","max_position_embeddings":2}"#,
        expect!["DIR: config.json: max_position_embeddings leaves room for 0 tokens"],
    );
    check_config(r#"{"pad_token_id":-1}"#, expect!["DIR: config.json: pad_token_id: -1 is no token id"]);
    check_config(
        r#"{"architectures":["XForSequenceClassification"],"problem_type":"guess"}"#,
        expect![[
            r#"DIR: config.json: problem_type: "guess" is none of regression, single_label_classification, multi_label_classification"#
        ]],
    );
    check_config(
        r#"{"function_to_apply":"guess"}"#,
        expect![[r#"DIR: config.json: function_to_apply: "guess" is none of sigmoid, softmax, none"#]],
    );
}

#[test]
fn json_that_is_no_object_is_refused_in_every_file() {
    for (json, kind) in
        [("[]", "a list"), ("null", "null"), (" \n[ ]", "a list"), ("\"x\"", "a string"), ("1", "a number")]
    {
        for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json"] {
            let dir = tempfile::tempdir().unwrap();
            write(
                dir.path(),
                &[("config.json", BERT), ("tokenizer.json", "{}"), ("model.onnx", "graph"), (file, json)],
            );
            assert_eq!(describe(dir.path()), format!("DIR: {file}: {kind}, where a JSON object is required"));
        }
    }
    check_config(
        "[",
        expect!["DIR: config.json is not valid JSON: it ends in the middle of an array at line 1 column 1"],
    );
}

#[test]
fn configuration_without_an_architecture_is_refused() {
    for config in ["{}", r#"{"architectures":[]}"#, r#"{"architectures":null,"id2label":{"0":"a"}}"#] {
        check_config(
            config,
            expect![[
                r#"DIR: config.json: architectures is missing, and the model's task is read from it: ["…ForSequenceClassification"], ["…ForTokenClassification"], or ["…Model"] for embeddings"#
            ]],
        );
    }
    check_config(
        r#"{"architectures":["XForSequenceClassification"],"num_labels":0}"#,
        expect!["DIR: config.json: num_labels: 0, and a classifier has at least one label"],
    );
}

#[test]
fn byte_order_mark_is_skipped() {
    check_config(
        &format!("\u{feff}{BERT}"),
        expect![[r#"text-classification "bert" ["negative", "neutral", "positive"] None None tokens_max 512 pad 0"#]],
    );
}

/// A classifier of two labels: one-hot weights of the mask, so that its output is `[batch, 2]`.
fn classifier(labels: i64, weight: f32) -> Vec<u8> {
    let inputs = vec![graphs::value("attention_mask", Dt::Int64, &["batch", "tokens"])];
    let to_f32 = graphs::with_int(graphs::node("Cast", &["attention_mask"], &["m"]), "to", Dt::Float as i64);
    let mean = graphs::with_int(graphs::node("ReduceMax", &["m"], &["mean"]), "keepdims", 1);
    let flat = graphs::node("MatMul", &["mean", "w"], &["logits"]);
    let w = graphs::weights("w", &[1, labels], &vec![weight; labels as usize]);
    graphs::graph(
        inputs,
        vec![to_f32, mean, flat],
        vec![graphs::value("logits", Dt::Float, &["batch", "labels"])],
        vec![w],
    )
}

fn describe_check(dir: &Path) -> String {
    match check(dir, Choices::default(), &RegistryConfig::default()) {
        Ok(report) => {
            let inputs: Vec<String> = report.inputs.iter().map(ToString::to_string).collect();
            format!("{} -> {:?}, {} bytes", inputs.join(", "), report.trial_dimensions, report.parameter_bytes)
        }
        Err(error) => error.to_string().replace(&dir.display().to_string(), "DIR"),
    }
}

#[test]
fn check_runs_the_graph_and_compares_it_with_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[("config.json", BERT), ("tokenizer.json", "{}"), ("model.onnx", "no graph")]);
    let broken = describe_check(dir.path());
    assert!(broken.starts_with("DIR/model.onnx: truncated or not ONNX: "), "{broken}");
    let with = |graph: Vec<u8>, expected: Expect| {
        std::fs::write(dir.path().join("model.onnx"), graph).unwrap();
        expected.assert_eq(&describe_check(dir.path()));
    };
    with(classifier(3, 1.0), expect!["attention_mask i64[batch, tokens] -> [[1, 3]], 12 bytes"]);
    with(
        classifier(2, 1.0),
        expect![[
            r#"DIR: model.onnx: output "logits" has dimensions [1, 2], but a text-classification model with 3 labels ends in 3"#
        ]],
    );
    write(dir.path(), &[("config.json", r#"{"architectures":["BertModel"]}"#)]);
    with(
        classifier(3, 1.0),
        expect![[
            r#"DIR: model.onnx: output "logits" is a classifier's, and architectures in config.json names no …ForSequenceClassification or …ForTokenClassification"#
        ]],
    );
    write(dir.path(), &[("config.json", BERT)]);
    with(
        classifier(3, f32::NAN),
        expect![[r#"DIR: model.onnx: output "logits" is not a finite number in the trial run"#]],
    );
}

#[test]
fn list_has_each_model_or_its_error() {
    let root = tempfile::tempdir().unwrap();
    write(
        root.path(),
        &[
            ("good/config.json", BERT),
            ("good/tokenizer.json", "{}"),
            ("good/model.onnx", "12345"),
            ("bad/config.json", "{"),
            ("not-a-model/readme.txt", ""),
            (".pull-x/config.json", BERT),
        ],
    );
    let listed = list(root.path(), &RegistryConfig::default()).unwrap();
    let shown: Vec<String> = listed.iter().map(|l| format!("{} {} {}", l.name, l.bytes, l.model.is_ok())).collect();
    assert_eq!(shown, ["bad 1 false".to_owned(), format!("good {} true", BERT.len() + 7)]);
    let good = listed[1].selection.as_ref().unwrap();
    assert_eq!((good.engine, good.packed), (Engine::Tract, false));
    assert_eq!(good.reason, "not builtin: there is neither model.safetensors nor model_packed.onnx");
    assert_eq!(listed[0].selection, None);
    let error = list(&root.path().join("none"), &RegistryConfig::default()).unwrap_err().to_string();
    assert!(error.ends_with("none: there is no such directory"), "{error}");
}

/// The selection of tract for a device, or its error.
fn select_tract(device: DeviceChoice) -> Result<Selection, String> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sentiment");
    let choices = Choices { engine: EngineChoice::Only(Engine::Tract), device, ..Choices::default() };
    Selection::of(&dir, choices, &RegistryConfig::default()).map_err(|error| error.to_string())
}

#[cfg(not(feature = "cuda"))]
#[test]
fn tract_on_a_gpu_needs_the_feature() {
    let sentence = expect![[
        r#"cuda:1: the engine tract computes on GPUs only in a weir that was built with its feature cuda: build it with `--features cuda`, or set models.engine to "onnxruntime" or "auto""#
    ]];
    sentence.assert_eq(&select_tract(DeviceChoice::Only(Device::Cuda(1))).unwrap_err());
    let selection = select_tract(DeviceChoice::Auto).unwrap();
    assert_eq!((selection.engine, selection.device, selection.packed), (Engine::Tract, Device::Cpu, true));
    assert!(selection.fallback.unwrap().starts_with("cuda:0: the engine tract computes on GPUs only in a weir"));
}

#[cfg(feature = "cuda")]
#[test]
fn tract_computes_on_the_first_gpu_alone() {
    let sentence = expect![[
        r#"cuda:1: the engine tract computes on the first GPU alone: set models.engine to "onnxruntime", or select the GPU in CUDA_VISIBLE_DEVICES and set models.device to "cuda""#
    ]];
    sentence.assert_eq(&select_tract(DeviceChoice::Only(Device::Cuda(1))).unwrap_err());
    // On a machine without a GPU the processor computes texts end to end, and on one with a GPU padded.
    let selection = select_tract(DeviceChoice::Auto).unwrap();
    let on_cpu = selection.device == Device::Cpu;
    assert_eq!((selection.engine, selection.packed, selection.fallback.is_some()), (Engine::Tract, on_cpu, on_cpu));
}

#[test]
fn shipped_models_are_served_by_the_builtin_engine() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    for listed in list(&models, &RegistryConfig::default()).unwrap() {
        let selection = listed.selection.unwrap();
        assert_eq!((selection.engine, selection.packed), (Engine::Builtin, true), "{}", listed.name);
        assert!(selection.reason.starts_with("model_packed.onnx: an encoder of "), "{}", selection.reason);
        let report = check(&models.join(&listed.name), Choices::default(), &RegistryConfig::default()).unwrap();
        assert_eq!(report.selection, selection);
        let on_tract = Choices { engine: EngineChoice::Only(Engine::Tract), ..Choices::default() };
        let tract = check(&models.join(&listed.name), on_tract, &RegistryConfig::default()).unwrap();
        assert_eq!((tract.selection.engine, tract.selection.reason.as_str()), (Engine::Tract, "as configured"));
        assert_eq!(tract.trial_dimensions, report.trial_dimensions);
    }
}

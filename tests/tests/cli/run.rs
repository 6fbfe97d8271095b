//! `weir run` with the shipped models.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result};
use expect_test::{Expect, expect};
use serde_json::Value;
use weir_tests::{models, ndjson, weir};

fn run(arguments: &[&str], input: &[u8]) -> Result<Output> {
    let mut child = Command::new(weir()?)
        .arg("run")
        .args(arguments)
        .arg("--models-dir")
        .arg(models())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("a pipe")?;
    let input = input.to_vec();
    // The program may exit before it has read everything.
    let feeding = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output()?;
    let _ = feeding.join();
    Ok(output)
}

fn lines(output: &Output) -> Result<Vec<Value>> {
    ndjson(std::str::from_utf8(&output.stdout)?)
}

#[test]
fn invalid_line_is_an_error_at_its_index() -> Result<()> {
    let input = b"I love this so much!\n{\"text\":\"This is awful and I hate it.\"}\n{\"no\":1}\n\xff\xfe\nThe meeting is at ten.\n";
    let output = run(&["--task", "sentiment"], input)?;
    assert_eq!(output.status.code(), Some(1), "an invalid line makes the exit status 1");
    let lines = lines(&output)?;
    let labels: Vec<&str> = lines.iter().map(|l| l["label"].as_str().unwrap_or("error")).collect();
    assert_eq!(labels, ["positive", "negative", "error", "error", "neutral"]);
    for (index, line) in lines.iter().enumerate() {
        assert_eq!(line["index"], index);
    }
    // The errors are those of the same lines over HTTP.
    let refused = |line: &Value| (line["error"]["code"].clone(), line["error"]["line"].clone());
    assert_eq!(refused(&lines[2]), ("invalid_item".into(), 3.into()));
    assert_eq!(refused(&lines[3]), ("not_utf8".into(), 4.into()));
    Ok(())
}

#[test]
fn top_k_scores_of_all_labels_sum_to_one() -> Result<()> {
    let output = run(&["--task", "sentiment", "--top-k", "3"], b"A fine day.\n")?;
    assert!(output.status.success(), "{output:?}");
    let line = &lines(&output)?[0];
    let scores: Vec<f64> =
        line["scores"].as_array().context("a list")?.iter().filter_map(|s| s["score"].as_f64()).collect();
    assert_eq!(scores.len(), 3);
    assert!(scores.is_sorted_by(|a, b| a >= b), "{line}");
    assert!((scores.iter().sum::<f64>() - 1.0).abs() < 1e-5, "{line}");
    Ok(())
}

#[test]
fn run_prints_entities_embeddings_and_summaries() -> Result<()> {
    let text = "Angela Merkel met Emmanuel Macron in Berlin.\n";
    let entities = lines(&run(&["--task", "entities"], text.as_bytes())?)?;
    let groups: Vec<(&str, &str)> = entities[0]["entities"]
        .as_array()
        .context("a list")?
        .iter()
        .map(|e| (e["entity_group"].as_str().unwrap_or("?"), e["word"].as_str().unwrap_or("?")))
        .collect();
    assert_eq!(groups, [("PER", "angela merkel"), ("PER", "emmanuel macron"), ("LOC", "berlin")]);

    let vector = lines(&run(&["--task", "embed"], text.as_bytes())?)?;
    let vector: Vec<f64> =
        vector[0]["embedding"].as_array().context("a list")?.iter().filter_map(Value::as_f64).collect();
    assert_eq!(vector.len(), 384);
    assert!((vector.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-5);

    let long = "The council met on Monday to discuss the bridge. Several members were late. The bridge was built in 1931 and \
        needs repair. Repairing the bridge will cost four million. Lunch was served at noon. The council agreed to pay \
        for the repair of the bridge over three years. A dog barked outside. Work on the bridge begins in May.\n";
    let summary = lines(&run(&["--task", "summary"], long.as_bytes())?)?;
    let summary = summary[0]["summary"].as_str().context("a string")?;
    assert!(
        summary.contains("bridge") && long.contains(summary.split(". ").next().context("a sentence")?),
        "{summary}"
    );
    Ok(())
}

#[test]
fn results_of_many_lines_are_in_order() -> Result<()> {
    let mut input = String::new();
    for i in 0..1500 {
        // Different lengths make results arrive in another order than the lines.
        input.push_str(&format!("{} number {i}\n", "word ".repeat(i % 17)));
    }
    let output = run(&["--task", "sentiment", "--quiet"], input.as_bytes())?;
    assert!(output.status.success());
    let lines = lines(&output)?;
    assert_eq!(lines.len(), 1500);
    assert!(lines.iter().enumerate().all(|(i, line)| line["index"] == i && line["score"].is_f64()));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The events of transcripts without partial segments: type, and text and intent of final segments.
fn transcript_events(output: &Output) -> Result<Vec<(String, String, String)>> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let events = lines(output)?;
    Ok(events
        .iter()
        .filter(|event| event["type"] != "partial_segment")
        .map(|event| (text(&event["type"]), text(&event["segment"]["text"]), text(&event["semantic"]["intent"])))
        .collect())
}

#[test]
fn transcript_is_read_as_lines_or_captions() -> Result<()> {
    let segment = |text: &str, intent: &str| ("final_segment".to_owned(), text.to_owned(), intent.to_owned());
    let expected = [segment("Can you hear me?", "question"), segment("We will send it.", "commitment")];
    let json = b"{\"start\":0,\"end\":1,\"text\":\"Can you\",\"speaker_id\":\"Ann\"}\n\
        {\"start\":1.1,\"end\":1.5,\"text\":\"hear me?\",\"speaker_id\":\"Ann\"}\n\
        {\"start\":4,\"end\":5,\"text\":\"We will send it.\",\"speaker_id\":\"Bob\"}\n";
    let output = run(&["--task", "transcript"], json)?;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(transcript_events(&output)?, expected);

    let dir = tempfile::tempdir()?;
    let (srt, vtt) = (dir.path().join("a.srt"), dir.path().join("a.vtt"));
    std::fs::write(
        &srt,
        "1\r\n00:00:00,000 --> 00:00:01,000\r\nCan you\r\n\r\n2\r\n00:00:01,100 --> 00:00:01,500\r\n<i>hear me?</i>\r\n\r\n\
         3\r\n00:00:04,000 --> 00:00:05,000\r\nWe will send it.\r\n",
    )?;
    std::fs::write(
        &vtt,
        "WEBVTT\n\n00:00.000 --> 00:01.000\n<v Ann>Can you\n\n00:01.100 --> 00:01.500\n<v Ann>hear me?\n\n\
         00:04.000 --> 00:05.000\n<v Bob>We will send it.\n",
    )?;
    for file in [&srt, &vtt] {
        let output = run(&["--task", "transcript", "--quiet", file.to_str().context("a path")?], b"")?;
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        assert_eq!(transcript_events(&output)?, expected, "{}", file.display());
    }
    // Each file is a separate transcript; a smaller gap splits more segments.
    let (srt, vtt) = (srt.to_str().context("a path")?, vtt.to_str().context("a path")?);
    let output = run(&["--task", "transcript", "--max-gap-sec", "0.05", srt, vtt], b"")?;
    assert_eq!(transcript_events(&output)?.len(), 6);
    Ok(())
}

#[test]
fn wrong_line_of_a_transcript_is_reported_and_the_rest_is_read() -> Result<()> {
    let json = b"{\"start\":0,\"end\":1,\"text\":\"one\"}\nnonsense\n{\"start\":0.5,\"end\":0.4,\"text\":\"two\"}\n\
        {\"start\":1,\"end\":2,\"text\":\"three\"}";
    let output = run(&["--task", "transcript"], json)?;
    assert_eq!(output.status.code(), Some(1));
    let types: Vec<String> = transcript_events(&output)?.into_iter().map(|(kind, ..)| kind).collect();
    assert_eq!(types, ["error", "error", "final_segment"]);
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("broken.vtt");
    std::fs::write(&file, "WEBVTT\n\n00:00 --> soon\nlost\n\n00:04.000 --> 00:05.000\nkept\n")?;
    let output = run(&["--task", "transcript", file.to_str().context("a path")?], b"")?;
    assert_eq!(output.status.code(), Some(1));
    let events = lines(&output)?;
    // An invalid cue is an error at its position, like an invalid line.
    assert_eq!((&events[0]["error"]["code"], &events[0]["line"]), (&"invalid_cue".into(), &3.into()));
    assert!(transcript_events(&output)?.iter().any(|(kind, text, _)| kind == "final_segment" && text == "kept"));
    check_error(
        &["--task", "transcript", "--model", "sentiment"],
        expect![[r#"
            weir: --model: a transcript needs none
        "#]],
    )?;
    check_error(
        &["--task", "transcript", "--quiet", "--max-gap-sec=-1"],
        expect![[r#"
            error: invalid value '-1' for '--max-gap-sec <SECONDS>': -1 is not allowed: the smallest value is 0

            For more information, try '--help'.
        "#]],
    )
}

#[test]
fn captions_are_recognized_by_their_content() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let srt = "1\n00:00:01,000 --> 00:00:02,000\nO&#39;Neil\n\nspoke\n2\n00:00:09,000 --> 00:00:10,000\nb\n";
    let vtt = "WEBVTT\n\nNOTE\n00:01.000 --> 00:05.000\n<v Ann&eacute;e>a &quot;b&quot;\n \nc\n\n00:02.000 --> 00:03.000\n<v Bob>crosstalk\n";
    let json = "\u{feff}{\"start\":0,\"end\":0.30000000000000004,\"text\":\"a\"}\r\n\r\n{\"start\":0.3,\"end\":1,\"text\":\"b\"}\n";
    let utf16 =
        |text: &str| [0xfeff].into_iter().chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let summaries = |output: &Output| -> Result<Vec<String>> {
        Ok(transcript_events(output)?.into_iter().map(|(kind, text, _)| format!("{kind} {text}")).collect())
    };
    for (name, file, expected) in [
        ("a.vtt", srt.as_bytes().to_vec(), ["final_segment O&#39;Neil spoke", "final_segment b"].as_slice()),
        ("b.txt", utf16(srt), ["final_segment O&#39;Neil spoke", "final_segment b"].as_slice()),
        ("c.srt", vtt.as_bytes().to_vec(), ["final_segment a \"b\" c", "final_segment crosstalk"].as_slice()),
        ("d.srt", json.as_bytes().to_vec(), ["final_segment a b"].as_slice()),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, &file)?;
        let output = run(&["--task", "transcript", "--quiet", path.to_str().context("a path")?], b"")?;
        assert!(output.status.success(), "{name}: {output:?}");
        assert_eq!(summaries(&output)?, expected, "{name}");
        let output = run(&["--task", "transcript", "--quiet"], &file)?;
        assert_eq!(summaries(&output)?, expected, "{name} from a pipe");
    }
    Ok(())
}

#[test]
fn captions_in_another_encoding_are_refused_and_the_next_file_is_read() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (latin1, good) = (dir.path().join("latin1.srt"), dir.path().join("good.srt"));
    std::fs::write(&latin1, b"1\n00:00:01,000 --> 00:00:02,000\ncaf\xe9\n")?;
    std::fs::write(&good, "1\n00:00:01,000 --> 00:00:02,000\ngood\n")?;
    let (latin1, good) = (latin1.to_str().context("a path")?, good.to_str().context("a path")?);
    let output = run(&["--task", "transcript", "--quiet", latin1, good], b"")?;
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("latin1.srt: line 3: byte 0xE9 is not UTF-8"), "{stderr}");
    assert_eq!(transcript_events(&output)?.len(), 1, "{output:?}");
    Ok(())
}

/// Named pipes whose first read returns only a few bytes.
#[test]
fn slow_pipes_are_read_once() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let vtt = "WEBVTT\n\n00:01.000 --> 00:02.000\nslow\n";
    for (task, file, at) in [("transcript", vtt, 1), ("sentiment", "I love it\n", 4)] {
        let pipe = dir.path().join(task);
        anyhow::ensure!(Command::new("mkfifo").arg(&pipe).status()?.success(), "mkfifo failed");
        let path = pipe.clone();
        // Opening a pipe for writing waits for its reader; opening it twice for reading would lose the bytes or block.
        let writing = std::thread::spawn(move || -> std::io::Result<()> {
            let mut pipe = std::fs::OpenOptions::new().write(true).open(path)?;
            pipe.write_all(&file.as_bytes()[..at])?;
            pipe.flush()?;
            std::thread::yield_now();
            pipe.write_all(&file.as_bytes()[at..])
        });
        let output = run(&["--task", task, "--quiet", pipe.to_str().context("a path")?], b"")?;
        writing.join().expect("the writer does not panic")?;
        assert!(output.status.success(), "{output:?}");
        assert!(!lines(&output)?.is_empty(), "{output:?}");
    }
    Ok(())
}

#[test]
fn file_lines_are_parsed_as_over_http() -> Result<()> {
    let input = "\u{feff}{\"text\":\"I love it\",\"id\":\"x\",\"stars\":5}\r\n\r\n \n\"I hate \\\"it\\\"\"\n\"Wonderful,\" she said.\n";
    let output = run(&["--task", "entities", "--quiet"], input.as_bytes())?;
    assert!(output.status.success(), "{output:?}");
    let lines = lines(&output)?;
    let indexes: Vec<(&Value, &Value)> = lines.iter().map(|line| (&line["index"], &line["id"])).collect();
    assert_eq!(indexes, [(&0.into(), &"x".into()), (&1.into(), &Value::Null), (&2.into(), &Value::Null)]);
    Ok(())
}

#[test]
fn entities_of_long_texts_are_found_whole() -> Result<()> {
    let mut input: String = [0, 100, 505, 506, 507, 510]
        .iter()
        .map(|words| format!("{}and then Angela Merkel from Sevastopol came\n", "tea ".repeat(*words)))
        .collect();
    let talk = "so we went there and we had some tea and talked about the weather and ";
    input += &format!("{}then Angela Merkel from Berlin came and said hello {}\n", talk.repeat(40), talk.repeat(30));
    let output = run(&["--task", "entities", "--quiet"], input.as_bytes())?;
    assert!(output.status.success(), "{output:?}");
    for line in lines(&output)? {
        let persons: Vec<&Value> = line["entities"]
            .as_array()
            .context("a list")?
            .iter()
            .filter(|entity| entity["entity_group"] == "PER")
            .map(|entity| &entity["text"])
            .collect();
        assert_eq!(persons, ["Angela Merkel"], "{line}");
    }
    Ok(())
}

#[test]
fn empty_input_gives_empty_output() -> Result<()> {
    let output = run(&["--task", "sentiment", "--quiet"], b"")?;
    assert!(output.status.success() && output.stdout.is_empty());
    Ok(())
}

#[test]
fn text_over_the_limit_without_truncation_is_an_error_of_its_line() -> Result<()> {
    let long = "word ".repeat(3000);
    let output = run(&["--task", "sentiment", "--no-truncation"], format!("short\n{long}\n").as_bytes())?;
    assert_eq!(output.status.code(), Some(1));
    let lines = lines(&output)?;
    assert!(lines[0]["label"].is_string());
    assert_eq!(lines[1]["error"]["code"], "too_long");
    Ok(())
}

fn check_error(arguments: &[&str], expect: Expect) -> Result<()> {
    let output = run(arguments, b"")?;
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr).replace(&models().display().to_string(), "MODELS");
    expect.assert_eq(&stderr);
    Ok(())
}

#[test]
fn invalid_argument_is_reported_in_one_line() -> Result<()> {
    check_error(
        &["--task", "sentiment", "/nowhere.txt"],
        expect![[r#"
        weir: /nowhere.txt cannot be read: No such file or directory (os error 2)
    "#]],
    )?;
    check_error(
        &["--task", "sentiment", "--model", "nothing"],
        expect![[r#"
        weir: no model `nothing`: not a folder, and not in MODELS, which has embeddings, entities, sentiment
    "#]],
    )?;
    check_error(
        &["--task", "sentiment", "--model", "entities"],
        expect![[r#"
        weir: model entities is not for this task, which needs one for text classification
    "#]],
    )?;
    check_error(
        &["--task", "embed", "--set", "http.listn=1"],
        expect![[r#"
            weir: http.listn is not a key of the configuration; did you mean `http.listen`?
        "#]],
    )?;
    check_error(
        &["--task", "embed", "--component", "infer=/nowhere.wasm"],
        expect![[r#"
        weir: component /nowhere.wasm cannot be read: No such file or directory (os error 2)
    "#]],
    )
}

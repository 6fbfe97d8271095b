//! The nine events of executions as JSON. Every event has six members: `event_type`, `execution_id`, `step_id`, `timestamp`, `data` and
//! `metadata`.

use weir_core::pipelines::{Data, Event, Json, Metadata, PipelineFailure, Sequenced, StepFailure};

use super::writer::{Object, object};

/// An event as one line of JSON, without a line end. Its id on the wire is its cursor in the channel.
///
/// `step_id` is null for an event of the whole execution; `metadata` is null when it has no values. Durations are in milliseconds, exact.
pub fn to_json(execution_id: &str, event: &Event) -> String {
    write(execution_id, event, None)
}

/// An event for its channel, with its number in the execution as `metadata.seq`, so that a reader of the last event in the channel knows
/// the number of events. If the event would exceed `bytes_max` bytes, the output of the execution is null in it; a request for the
/// execution returns the output.
pub fn numbered_json(execution_id: &str, Sequenced { seq, event }: &Sequenced, bytes_max: usize) -> String {
    let json = write(execution_id, event, Some(*seq));
    match &event.data {
        Data::PipelineComplete { output, duration_ns, steps_completed, steps_failed }
            if json.len() > bytes_max && *output != Json::null() =>
        {
            let (duration_ns, steps_completed, steps_failed) = (*duration_ns, *steps_completed, *steps_failed);
            let data = Data::PipelineComplete { output: Json::null(), duration_ns, steps_completed, steps_failed };
            write(execution_id, &Event { data, ..event.clone() }, Some(*seq))
        }
        _ => json,
    }
}

/// The number of an event of [`numbered_json`]; `None` for other text.
pub fn number(json: &str) -> Option<u64> {
    #[derive(serde::Deserialize)]
    struct Wire {
        metadata: Numbered,
    }
    #[derive(serde::Deserialize)]
    struct Numbered {
        seq: u64,
    }
    serde_json::from_str::<Wire>(json).ok().map(|wire| wire.metadata.seq)
}

fn write(execution_id: &str, event: &Event, seq: Option<u64>) -> String {
    object(|out| {
        out.value("event_type", event.event_type().name()).value("execution_id", execution_id);
        out.value("step_id", &event.step_id.as_deref()).value("timestamp", &timestamp(event.unix_ns));
        out.object("data", |out| write_data(out, &event.data));
        write_metadata(out, &event.metadata, seq);
    })
}

fn write_data(out: &mut Object<'_>, data: &Data) {
    match data {
        Data::PipelineStart { name, steps } => out.value("name", &**name).value("steps", steps),
        Data::StepStart { kind } => out.value("kind", kind.name()),
        Data::StepProgress { progress, message } => out.value("progress", progress).value("message", &**message),
        Data::StepOutput { index, output } => out.value("index", index).raw("output", output.as_str()),
        Data::StepComplete { kind, output, duration_ns } => {
            out.value("kind", kind.name()).raw("output", output.as_str()).milliseconds("duration_ms", *duration_ns)
        }
        Data::StepError { kind, failure, retry_in_ns, duration_ns } => {
            out.value("kind", kind.name());
            write_failure(out, failure);
            match retry_in_ns {
                Some(ns) => out.milliseconds("retry_in_ms", *ns),
                None => out.raw("retry_in_ms", "null"),
            };
            out.milliseconds("duration_ms", *duration_ns)
        }
        Data::PipelineComplete { output, duration_ns, steps_completed, steps_failed } => out
            .raw("output", output.as_str())
            .milliseconds("duration_ms", *duration_ns)
            .value("steps_completed", steps_completed)
            .value("steps_failed", steps_failed),
        Data::PipelineError { failure, duration_ns } => {
            write_pipeline_failure(out, failure);
            out.milliseconds("duration_ms", *duration_ns)
        }
        Data::CheckpointSaved { checkpoint, steps_completed } => {
            out.value("checkpoint", checkpoint).value("steps_completed", steps_completed)
        }
    };
}

/// Writes `error`, `code` and `retryable`, the members of every failure.
pub(super) fn write_failure(out: &mut Object<'_>, failure: &StepFailure) {
    out.value("error", &*failure.message).value("code", &*failure.code).value("retryable", &failure.retryable);
}

pub(super) fn write_pipeline_failure(out: &mut Object<'_>, failure: &PipelineFailure) {
    write_failure(out, &failure.failure);
    out.value("failed_step", &failure.step_id.as_deref()).value("cancelled", &failure.cancelled);
    out.value("compensated", &failure.compensated).value("compensations_failed", &failure.compensations_failed);
}

fn write_metadata(out: &mut Object<'_>, metadata: &Metadata, seq: Option<u64>) {
    if *metadata == Metadata::default() && seq.is_none() {
        out.raw("metadata", "null");
        return;
    }
    out.object("metadata", |out| {
        let Metadata { attempt, run, resumed, compensates } = metadata;
        if let Some(seq) = seq {
            out.value("seq", &seq);
        }
        for (name, count) in [("attempt", attempt), ("run", run), ("resumed", resumed)] {
            if *count > 0 {
                out.value(name, count);
            }
        }
        if let Some(step) = compensates {
            out.value("compensates", &**step);
        }
    });
}

/// Formats a time as RFC 3339 in UTC, with milliseconds: `2025-10-22T10:30:00.000Z`. A `u64` of nanoseconds ends in the year 2554.
pub fn timestamp(unix_ns: u64) -> String {
    let (seconds, ms) = (unix_ns / 1_000_000_000, unix_ns / 1_000_000 % 1000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// The Gregorian date of a number of days after 1970-01-01. Years begin with March here, so that the leap day is the last day of the
/// year. Periods of 400, 100, 4 years and 1 year then have 146,097, 36,524, 1,461 and 365 days.
fn date(days: u64) -> (u64, u64, u64) {
    // Days since 0000-03-01.
    let mut rest = days + 719_468;
    let mut year = 400 * (rest / 146_097);
    rest %= 146_097;
    let centuries = (rest / 36_524).min(3);
    rest -= centuries * 36_524;
    let leaps = rest / 1461;
    rest -= leaps * 1461;
    let years = (rest / 365).min(3);
    rest -= years * 365;
    year += 100 * centuries + 4 * leaps + years;
    const MONTHS_FROM_MARCH: [u64; 12] = [31, 30, 31, 30, 31, 31, 30, 31, 30, 31, 31, 29];
    let mut month = 3;
    for length in MONTHS_FROM_MARCH {
        if rest < length {
            break;
        }
        rest -= length;
        month += 1;
    }
    if month > 12 { (year + 1, month - 12, rest + 1) } else { (year, month, rest + 1) }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use weir_core::pipelines::{Json, KindName};

    use super::*;

    #[test]
    fn times_are_formatted() {
        for (seconds, want) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (951_868_800, "2000-03-01T00:00:00.000Z"),
            (1_761_129_000, "2025-10-22T10:30:00.000Z"),
            (4_107_542_399, "2100-02-28T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
            (13574606400, "2400-02-29T12:00:00.000Z"),
        ] {
            assert_eq!(timestamp(seconds * 1_000_000_000), want);
        }
        assert_eq!(timestamp(1_234_567_890), "1970-01-01T00:00:01.234Z");
        // The dates of 583 years are strictly increasing.
        let mut before = String::new();
        for day in 0..213_000 {
            let now = timestamp(day * 86_400_000_000_000);
            assert!(now > before, "{before} {now}");
            before = now;
        }
        assert_eq!(&before[..10], "2553-03-04");
    }

    #[test]
    fn each_event_has_its_fields() {
        let failure = StepFailure { retry_after_ms: Some(3), ..StepFailure::passing("busy", "come \"back\"\n") };
        let pipeline_failure = PipelineFailure {
            failure: failure.clone(),
            step_id: Some("s".into()),
            cancelled: false,
            compensated: 2,
            compensations_failed: 1,
        };
        let output = Json::from_checked(r#"{"x":[1,2.50]}"#);
        let kind = KindName::Http;
        let all = [
            Data::PipelineStart { name: "p".into(), steps: 2 },
            Data::StepStart { kind },
            Data::StepProgress { progress: 0.5, message: "Processing...".into() },
            Data::StepOutput { index: 3, output: output.clone() },
            Data::StepComplete { kind, output: output.clone(), duration_ns: 1_234_000_000 },
            Data::StepError { kind, failure: failure.clone(), retry_in_ns: Some(500_000), duration_ns: 1 },
            Data::StepError { kind, failure, retry_in_ns: None, duration_ns: 0 },
            Data::PipelineComplete { output, duration_ns: 1_000_500, steps_completed: 1, steps_failed: 1 },
            Data::PipelineError { failure: pipeline_failure, duration_ns: 7_000_000 },
            Data::CheckpointSaved { checkpoint: 4, steps_completed: 1 },
        ];
        let mut lines = String::new();
        for data in all {
            let of_step = matches!(
                data,
                Data::StepStart { .. }
                    | Data::StepProgress { .. }
                    | Data::StepOutput { .. }
                    | Data::StepComplete { .. }
                    | Data::StepError { .. }
            );
            let metadata = match of_step {
                true => Metadata { attempt: 1, run: 2, resumed: 0, compensates: Some("a".into()) },
                false => Metadata::default(),
            };
            let step_id = of_step.then(|| "s".into());
            let event = Event { step_id, unix_ns: 1_761_129_000_000_000_000, data, metadata };
            lines.push_str(&to_json("exec_1", &event));
            lines.push('\n');
        }
        for line in lines.lines() {
            let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
            let keys: Vec<&str> = value.as_object().expect("an object").keys().map(String::as_str).collect();
            assert_eq!(keys, ["data", "event_type", "execution_id", "metadata", "step_id", "timestamp"]);
        }
        expect![[r#"
            {"event_type":"pipeline_start","execution_id":"exec_1","step_id":null,"timestamp":"2025-10-22T10:30:00.000Z","data":{"name":"p","steps":2},"metadata":null}
            {"event_type":"step_start","execution_id":"exec_1","step_id":"s","timestamp":"2025-10-22T10:30:00.000Z","data":{"kind":"http"},"metadata":{"attempt":1,"run":2,"compensates":"a"}}
            {"event_type":"step_progress","execution_id":"exec_1","step_id":"s","timestamp":"2025-10-22T10:30:00.000Z","data":{"progress":0.5,"message":"Processing..."},"metadata":{"attempt":1,"run":2,"compensates":"a"}}
            {"event_type":"step_output","execution_id":"exec_1","step_id":"s","timestamp":"2025-10-22T10:30:00.000Z","data":{"index":3,"output":{"x":[1,2.50]}},"metadata":{"attempt":1,"run":2,"compensates":"a"}}
            {"event_type":"step_complete","execution_id":"exec_1","step_id":"s","timestamp":"2025-10-22T10:30:00.000Z","data":{"kind":"http","output":{"x":[1,2.50]},"duration_ms":1234},"metadata":{"attempt":1,"run":2,"compensates":"a"}}
            {"event_type":"step_error","execution_id":"exec_1","step_id":"s","timestamp":"2025-10-22T10:30:00.000Z","data":{"kind":"http","error":"come \"back\"\n","code":"busy","retryable":true,"retry_in_ms":0.5,"duration_ms":0.000001},"metadata":{"attempt":1,"run":2,"compensates":"a"}}
            {"event_type":"step_error","execution_id":"exec_1","step_id":"s","timestamp":"2025-10-22T10:30:00.000Z","data":{"kind":"http","error":"come \"back\"\n","code":"busy","retryable":true,"retry_in_ms":null,"duration_ms":0},"metadata":{"attempt":1,"run":2,"compensates":"a"}}
            {"event_type":"pipeline_complete","execution_id":"exec_1","step_id":null,"timestamp":"2025-10-22T10:30:00.000Z","data":{"output":{"x":[1,2.50]},"duration_ms":1.0005,"steps_completed":1,"steps_failed":1},"metadata":null}
            {"event_type":"pipeline_error","execution_id":"exec_1","step_id":null,"timestamp":"2025-10-22T10:30:00.000Z","data":{"error":"come \"back\"\n","code":"busy","retryable":true,"failed_step":"s","cancelled":false,"compensated":2,"compensations_failed":1,"duration_ms":7},"metadata":null}
            {"event_type":"checkpoint_saved","execution_id":"exec_1","step_id":null,"timestamp":"2025-10-22T10:30:00.000Z","data":{"checkpoint":4,"steps_completed":1},"metadata":null}
        "#]].assert_eq(&lines);
    }

    #[test]
    fn event_number_is_in_the_metadata() {
        let output = Json::from_checked(format!("\"{}\"", "x".repeat(1000)));
        let data = Data::PipelineComplete { output, duration_ns: 1_000_000, steps_completed: 2, steps_failed: 0 };
        let event = Event { step_id: None, unix_ns: 0, data, metadata: Metadata::default() };
        let whole = numbered_json("exec_1", &Sequenced { seq: 7, event: event.clone() }, 2000);
        assert_eq!(number(&whole), Some(7));
        assert!(whole.ends_with(r#","metadata":{"seq":7}}"#) && whole.contains("xxx"), "{whole}");
        let cut = numbered_json("exec_1", &Sequenced { seq: 8, event: event.clone() }, 1000);
        assert!(cut.contains(r#""output":null"#) && cut.len() <= 1000, "{cut}");
        assert_eq!(number(&cut), Some(8));
        assert_eq!(number(&to_json("exec_1", &event)), None);
        assert_eq!(number("{"), None);
    }
}

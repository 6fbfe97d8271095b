//! Checks of the configuration.

use weir_config::{Adapter, AdapterSink, AdapterSource};

use super::access::Access;
use super::protocol::is_subject;

/// The minimum of `ack_wait_ms`: messages in progress are reported three times within it.
const ACK_WAIT_MS_MIN: u64 = 300;

/// Checks the settings of NATS of an adapter, without reading files or connecting.
///
/// # Errors
///
/// A sentence that names the key and the valid values.
pub(crate) fn check_settings(adapter: &Adapter) -> Result<(), String> {
    if let AdapterSource::Nats(source) = &adapter.source {
        let wrong = |reason: String| format!("source.{reason}");
        Access::from(source).check().map_err(wrong)?;
        // They are tokens of subjects.
        for (key, name) in [("stream", &source.stream), ("consumer", &source.consumer)] {
            if !is_subject(name, false) || name.contains('.') {
                return Err(format!("source.{key} `{name}` must be a name without spaces, `.`, `*` and `>`"));
            }
        }
        if !source.subject.is_empty() && !is_subject(&source.subject, true) {
            return Err(format!("source.subject `{}` is not a subject", source.subject));
        }
        if !matches!(source.start.as_str(), "first" | "new") {
            return Err(format!("source.start `{}` is not a start; use first or new", source.start));
        }
        for (key, value) in [("timeout_ms", source.timeout_ms), ("deliveries_max", source.deliveries_max)] {
            if value == 0 {
                return Err(format!("source.{key} must be at least 1"));
            }
        }
        if source.ack_wait_ms < ACK_WAIT_MS_MIN {
            return Err(format!("source.ack_wait_ms must be at least {ACK_WAIT_MS_MIN}"));
        }
    }
    for (key, sink) in
        [Some(("sink", &adapter.sink)), adapter.errors.as_ref().map(|errors| ("errors", errors))].into_iter().flatten()
    {
        let AdapterSink::Nats(sink) = sink else { continue };
        Access::from(sink).check().map_err(|reason| format!("{key}.{reason}"))?;
        if !is_subject(&sink.subject, false) {
            return Err(format!("{key}.subject `{}` must be a subject without wildcards", sink.subject));
        }
        if sink.timeout_ms == 0 {
            return Err(format!("{key}.timeout_ms must be at least 1"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use weir_config::{NatsSink, NatsSource};

    use super::*;

    fn source_error(source: NatsSource) -> String {
        check_settings(&Adapter { source: AdapterSource::Nats(source), ..Adapter::default() }).unwrap_err()
    }

    #[test]
    fn wrong_settings_are_named() {
        let config = NatsSource::default;
        for (source, expected) in [
            (
                NatsSource { url: "localhost".into(), ..config() },
                "source.url must be nats://host:port or tls://host:port",
            ),
            (
                NatsSource { stream: "a.b".into(), ..config() },
                "source.stream `a.b` must be a name without spaces, `.`, `*` and `>`",
            ),
            (
                NatsSource { consumer: String::new(), ..config() },
                "source.consumer `` must be a name without spaces, `.`, `*` and `>`",
            ),
            (NatsSource { subject: "a..b".into(), ..config() }, "source.subject `a..b` is not a subject"),
            (NatsSource { start: "last".into(), ..config() }, "source.start `last` is not a start; use first or new"),
            (NatsSource { deliveries_max: 0, ..config() }, "source.deliveries_max must be at least 1"),
            (NatsSource { ack_wait_ms: 100, ..config() }, "source.ack_wait_ms must be at least 300"),
        ] {
            assert_eq!(source_error(source), expected);
        }
        let sink = NatsSink { subject: "a.*".into(), ..NatsSink::default() };
        let adapter = Adapter { errors: Some(AdapterSink::Nats(sink)), ..Adapter::default() };
        assert_eq!(check_settings(&adapter).unwrap_err(), "errors.subject `a.*` must be a subject without wildcards");
        let good = NatsSource { subject: "a.>".into(), ..config() };
        let sink = AdapterSink::Nats(NatsSink::default());
        let adapter = Adapter { source: AdapterSource::Nats(good), sink, ..Adapter::default() };
        check_settings(&adapter).unwrap();
    }
}

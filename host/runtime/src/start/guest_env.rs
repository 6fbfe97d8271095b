//! The environment of guests: the settings that they see.
//!
//! A guest sees a key of the configuration only if it is listed here, under the name and in the form that the key has
//! in the environment of `weir` itself: `http.body_bytes_max` is `WEIR_HTTP_BODY_BYTES_MAX`. Facts about this host that
//! are not settings are added. Neither contains a path of the host or a secret, which a test checks.

use weir_config::{Config, EventsStore, Upstream};

/// The path of `auth.dir`, the folder of keys, in a gateway instance.
pub(super) const KEYS_DIR: &str = "/auth";
/// The path of `pipelines.dir`, the folder of pipelines, in a gateway instance.
pub(super) const PIPELINES_DIR: &str = "/pipelines";

/// For a gateway whose items go to the pools of this host, which answer them at the deadline of their request.
pub(super) const DEADLINES: (&str, &str) = ("WEIR_INFER_DEADLINES", "host");

/// The keys that the gateway component sees, by section.
const GATEWAY_KEYS: &[(&str, &[&str])] = &[
    ("http", &["hosts", "body_bytes_max", "body_timeout_ms", "request_timeout_ms"]),
    ("gateway", &["ui"]),
    ("steps", &["sentiment", "entities", "summary"]),
    ("events", &["heartbeat_ms", "retry_ms", "events_max", "bytes_max", "lease_ms"]),
    ("sessions", &["live_max", "user_live_max", "expire_ms_max", "memory_bytes_max", "checkpoint_ms", "ended_ttl_ms"]),
    (
        "pipelines",
        &[
            "executions_max",
            "user_executions_max",
            "input_bytes_max",
            "output_bytes_max",
            "outputs_bytes_max",
            "ttl_ms",
            "http_allow",
        ],
    ),
    (
        "auth",
        &[
            "mode",
            "issuers",
            "audiences",
            "leeway_s",
            "ticket_ttl_s",
            "cors_origins",
            "cors_credentials",
            "requests_per_s",
            "requests_burst",
            "publishes_per_s",
            "publishes_burst",
            "connections_max",
        ],
    ),
];

/// The keys that the infer component sees.
const INFER_KEYS: &[(&str, &[&str])] = &[("infer", &["max_batch_size", "batch_time_ms_max"])];

/// The keys that the generate component sees.
const GENERATE_KEYS: &[(&str, &[&str])] =
    &[("generate", &["step_ms", "running_max", "queue_requests_max", "tokens_max", "prompt_bytes_max", "choices_max"])];

/// The environment of the gateway component.
pub(super) fn gateway(config: &Config) -> Vec<(String, String)> {
    let facts = [
        // The HTTP edge of this process holds the connections of subscribers.
        ("WEIR_GRIP", "host".to_owned()),
        ("WEIR_INSTANCE", instance_name()),
        // Only Redis is shared: the memory and the disk store belong to one server.
        ("WEIR_EVENTS_SHARED", (config.events.store == EventsStore::Redis).to_string()),
        ("WEIR_AUTH_LOOPBACK", is_loopback(&config.http.listen).to_string()),
        ("WEIR_AUTH_DIR", KEYS_DIR.to_owned()),
        ("WEIR_PIPELINES_DIR", PIPELINES_DIR.to_owned()),
    ];
    variables(config, GATEWAY_KEYS, facts)
}

/// The environment of the infer component, for a model on an engine that plans for each shape or not. `batch_tokens_max`
/// is the setting of that name, or the device's own bound if the setting is 0.
pub(super) fn infer(config: &Config, plans_shapes: bool, batch_tokens_max: u32) -> Vec<(String, String)> {
    let shapes = if plans_shapes { "bounded" } else { "any" };
    let facts = [
        ("WEIR_INFER_BATCH_TOKENS_MAX", batch_tokens_max.to_string()),
        ("WEIR_INFER_SHAPES", shapes.to_owned()),
        // A pool reads outcomes while they are written.
        ("WEIR_INFER_YIELD", "off".to_owned()),
    ];
    variables(config, INFER_KEYS, facts)
}

/// The environment of the generate component.
pub(super) fn generate(config: &Config) -> Vec<(String, String)> {
    // Separated by the ASCII record separator, since prefixes contain spaces and line breaks.
    let prefixes = config.generate.prefixes.join("\u{1e}");
    variables(config, GENERATE_KEYS, [("WEIR_GENERATE_PREFIXES", prefixes)])
}

/// The environment of the upstream component: the keys of its `[[upstream]]` table, without those of the key of the server.
pub(super) fn upstream(upstream: &Upstream) -> Vec<(String, String)> {
    let settings = [
        ("KIND", upstream.kind.name().to_owned()),
        ("URL", upstream.url.clone()),
        ("MODELS", upstream.models.join(" ")),
        ("ALIASES", upstream.aliases.join(" ")),
        ("CONNECT_TIMEOUT_MS", upstream.connect_timeout_ms.to_string()),
        ("IDLE_TIMEOUT_MS", upstream.idle_timeout_ms.to_string()),
        ("RETRY_MAX_ATTEMPTS", upstream.retry_max_attempts.to_string()),
        ("RETRY_BASE_BACKOFF_MS", upstream.retry_base_backoff_ms.to_string()),
        ("CIRCUIT_FAILURES", upstream.circuit_failures.to_string()),
        ("CIRCUIT_WINDOW_MS", upstream.circuit_window_ms.to_string()),
        ("CIRCUIT_OPEN_MS", upstream.circuit_open_ms.to_string()),
        ("RUNNING_MAX", upstream.running_max.to_string()),
        ("USER_RUNNING_MAX", upstream.user_running_max.to_string()),
        ("USER_TOKENS_PER_MINUTE", upstream.user_tokens_per_minute.to_string()),
    ];
    settings.into_iter().map(|(name, value)| (format!("WEIR_UPSTREAM_{name}"), value)).collect()
}

fn variables<const N: usize>(
    config: &Config,
    keys: &[(&str, &[&str])],
    facts: [(&str, String); N],
) -> Vec<(String, String)> {
    let is_listed = |key: &str| {
        let (section, name) = key.split_once('.').unwrap_or_default();
        keys.iter().any(|(of, names)| *of == section && names.contains(&name))
    };
    let settings = weir_config::variables(config).into_iter().filter(|(key, ..)| is_listed(key));
    let settings = settings.map(|(_, variable, value)| (variable, value));
    settings.chain(facts.map(|(name, value)| (name.to_owned(), value))).collect()
}

/// A unique name of this server instance, under which it acquires leases.
fn instance_name() -> String {
    let half = |seed: u64| std::hash::BuildHasher::hash_one(&std::collections::hash_map::RandomState::new(), seed);
    format!("{:016x}{:016x}-{}", half(0), half(1), std::process::id())
}

/// Whether an address can be reached from this machine only. Names are not resolved; the only name that counts is
/// `localhost`.
fn is_loopback(listen: &str) -> bool {
    match listen.parse::<std::net::SocketAddr>() {
        Ok(address) => address.ip().to_canonical().is_loopback(),
        Err(_) => listen.rsplit_once(':').is_some_and(|(host, _)| host.eq_ignore_ascii_case("localhost")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_keys_exist() {
        let config = Config::default();
        let known: Vec<String> = weir_config::keys().into_iter().map(|key| key.name).collect();
        for (section, names) in GATEWAY_KEYS.iter().chain(INFER_KEYS).chain(GENERATE_KEYS) {
            for name in *names {
                assert!(known.contains(&format!("{section}.{name}")), "{section}.{name}");
            }
        }
        let count = |keys: &[(&str, &[&str])]| keys.iter().map(|(_, names)| names.len()).sum::<usize>();
        assert_eq!(gateway(&config).len(), count(GATEWAY_KEYS) + 6);
        assert_eq!(infer(&config, true, 7).len(), count(INFER_KEYS) + 3);
        assert_eq!(generate(&config).len(), count(GENERATE_KEYS) + 1);
    }

    #[test]
    fn values_have_the_form_that_guests_read() {
        let set = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let config = [
            set("http.hosts", "[a.example, b.example]"),
            set("auth.cors_credentials", "true"),
            set("events.lease_ms", "5000"),
            set("steps.summary", ""),
        ];
        let config = weir_config::load(None, [], &config).expect("a configuration");
        let environment = gateway(&config);
        let value = |name: &str| environment.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
        assert_eq!(value("WEIR_HTTP_HOSTS"), Some("a.example b.example"));
        assert_eq!(value("WEIR_AUTH_CORS_CREDENTIALS"), Some("true"));
        assert_eq!(value("WEIR_AUTH_MODE"), Some("none"));
        assert_eq!(value("WEIR_AUTH_ISSUERS"), Some(""));
        assert_eq!(value("WEIR_EVENTS_LEASE_MS"), Some("5000"));
        assert_eq!(value("WEIR_STEPS_SUMMARY"), Some(""));
        assert_eq!(value("WEIR_EVENTS_SHARED"), Some("false"));
    }

    /// Sets every key that takes a string (paths, the URL of Redis with its password, lists) to a unique marker. Guests
    /// see only the markers of the keys that are listed below.
    #[test]
    fn paths_and_secrets_of_the_host_do_not_reach_guests() {
        const TEXTS: [&str; 9] = [
            "auth.audiences",
            "auth.cors_origins",
            "auth.issuers",
            "generate.prefixes",
            "http.hosts",
            "pipelines.http_allow",
            "steps.entities",
            "steps.sentiment",
            "steps.summary",
        ];
        let mut marked = Vec::new();
        for key in weir_config::keys() {
            // A value of another type does not load.
            let marker = format!("marker-{}", key.name);
            for value in [marker.clone(), format!("[{marker}]"), format!("[step={marker}]")] {
                let pair = (key.name.clone(), value);
                if weir_config::load(None, [], std::slice::from_ref(&pair)).is_ok() {
                    marked.push(pair);
                    break;
                }
            }
        }
        let has = |name: &str| marked.iter().any(|(key, _)| key == name);
        for name in ["events.redis_url", "events.path", "events.file", "auth.dir", "pipelines.dir", "pipelines.steps"] {
            assert!(has(name), "{name} is not marked");
        }
        let config = weir_config::load(None, [], &marked).expect("a configuration of markers");
        for (name, value) in gateway(&config).into_iter().chain(generate(&config)).chain(infer(&config, true, 7)) {
            assert!(!value.contains('/') || value == KEYS_DIR || value == PIPELINES_DIR, "{name} is {value}");
            for (key, _) in &marked {
                let is_seen = value.split(' ').any(|word| word == format!("marker-{key}"));
                assert!(!is_seen || TEXTS.contains(&key.as_str()), "{name} shows {key}");
            }
        }
    }

    #[test]
    fn key_of_an_upstream_is_not_in_the_environment_of_its_component() {
        let upstream = Upstream { key_file: "marker/key".into(), key_env: "marker".into(), ..Upstream::default() };
        for (name, value) in super::upstream(&upstream) {
            assert!(!value.contains("marker"), "{name} is {value}");
        }
    }

    #[test]
    fn loopback_addresses_are_recognized() {
        for listen in ["127.0.0.1:0", "127.9.9.9:80", "[::1]:80", "[::ffff:127.0.0.1]:80", "localhost:80"] {
            assert!(is_loopback(listen), "{listen}");
        }
        for listen in
            ["0.0.0.0:80", "[::]:80", "10.0.0.1:80", "example.org:80", "localhost.example.org:80", "localhost"]
        {
            assert!(!is_loopback(listen), "{listen}");
        }
    }
}

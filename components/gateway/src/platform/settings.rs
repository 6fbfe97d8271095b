//! The settings, from environment variables that the host passes to every instance. They are read once.

use std::{num::NonZeroU32, path::PathBuf, sync::OnceLock};

/// The gateway's settings.
#[derive(Debug)]
pub(crate) struct Settings {
    /// `WEIR_HTTP_HOSTS`: host names that requests may be addressed to besides those of loopback, separated by spaces.
    /// They are checked if no authentication is required.
    pub(crate) hosts: Vec<String>,
    /// `WEIR_HTTP_BODY_BYTES_MAX`: maximum size of a body, in bytes, 1048576 by default.
    pub(crate) body_bytes_max: u64,
    /// `WEIR_HTTP_BODY_TIMEOUT_MS`: how long a body may take to arrive, 30000 by default.
    pub(crate) body_timeout_ms: u64,
    /// `WEIR_HTTP_REQUEST_TIMEOUT_MS`: how long a request may take, 60000 by default.
    pub(crate) request_timeout_ms: u64,
    /// `WEIR_INFER_DEADLINES`: `host` if every item of a request has its outcome by the deadline of the request, `none` by default.
    pub(crate) has_item_deadlines: bool,
    /// `WEIR_STEPS_SENTIMENT`: the model that labels chunks, `sentiment` by default; empty: the step is switched off.
    pub(crate) sentiment_model: String,
    /// `WEIR_STEPS_SUMMARY`: the model that summarizes, `embeddings` by default; empty: the step is switched off.
    pub(crate) summary_model: String,
    /// `WEIR_STEPS_ENTITIES`: the model that finds entities, `entities` by default; empty: the step is switched off.
    pub(crate) entities_model: String,
    /// `WEIR_EVENTS_HEARTBEAT_MS`: the time without a write after which a subscriber gets a heartbeat, 15000 by
    /// default.
    pub(crate) heartbeat_ms: u64,
    /// `WEIR_EVENTS_RETRY_MS`: the delay before a subscriber that lost its connection reconnects, 3000 by default.
    pub(crate) retry_ms: u32,
    /// `WEIR_GRIP`: the holder of connections, `off` by default.
    pub(crate) grip: Grip,
    /// `WEIR_KEEPER`: `1` in the stateful gateway instance, which resumes executions and sessions after a crash; `0` by
    /// default.
    pub(crate) keeper: bool,
    /// `WEIR_EVENTS_LEASE_MS`: the time after which the state of a dead instance is taken over, 10000 by default.
    pub(crate) lease_ms: u64,
    /// `WEIR_INSTANCE`: the name under which this instance acquires leases, a random one by default.
    pub(crate) instance: Option<String>,
    /// `WEIR_EVENTS_SHARED`: `false` if no other instance uses the store, `true` by default.
    pub(crate) shared: bool,
    /// `WEIR_PIPELINES_*`
    pub(crate) pipelines: Pipelines,
    /// `WEIR_GATEWAY_UI`: `off` if browsers get no page, `on` by default.
    pub(crate) ui: bool,
    /// `WEIR_AUTH_*`
    pub(crate) auth: Auth,
    /// `WEIR_SESSIONS_*`
    pub(crate) sessions: Sessions,
}

/// Settings of stored transcript sessions.
#[derive(Debug)]
pub(crate) struct Sessions {
    /// `WEIR_SESSIONS_LIVE_MAX`: maximum number of sessions, 100000 by default.
    pub(crate) live_max: u64,
    /// `WEIR_SESSIONS_USER_LIVE_MAX`: maximum number of sessions of one user, 25000 by default.
    pub(crate) user_live_max: u64,
    /// `WEIR_SESSIONS_EXPIRE_MS_MAX`: the longest `idle.expire_ms` that a session may have, a week by default; 0
    /// permits sessions that do not expire.
    pub(crate) expire_ms_max: u64,
    /// `WEIR_SESSIONS_MEMORY_BYTES_MAX`: maximum memory of checkpoints of sessions, 268435456 by default.
    pub(crate) memory_bytes_max: u64,
    /// `WEIR_SESSIONS_CHECKPOINT_MS`: the shortest time between two writes of a fed session to the store, 250 by
    /// default.
    pub(crate) checkpoint_ms: u64,
    /// `WEIR_SESSIONS_ENDED_TTL_MS`: how long an ended session remains readable, 600000 by default.
    pub(crate) ended_ttl_ms: u64,
    /// `WEIR_EVENTS_EVENTS_MAX`: events that a channel retains, 1000 by default.
    pub(crate) channel_events_max: u64,
    /// `WEIR_EVENTS_BYTES_MAX`: bytes that a channel retains, 1048576 by default.
    pub(crate) channel_bytes_max: u64,
}

/// The holder of the connections of subscribers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grip {
    /// `off`: this instance.
    Off,
    /// `host`: Weir's own host, which has the channels.
    Host,
    /// `proxy`: a proxy in front that speaks GRIP, such as Pushpin, and is fed by publishers.
    Proxy,
}

/// Pipelines and their executions.
#[derive(Debug)]
pub(crate) struct Pipelines {
    /// `WEIR_PIPELINES_DIR`: the folder of definitions, `/pipelines` by default. It may be missing.
    pub(crate) dir: PathBuf,
    /// `WEIR_PIPELINES_EXECUTIONS_MAX`: executions that run at once, 256 by default.
    pub(crate) executions_max: usize,
    /// `WEIR_PIPELINES_USER_EXECUTIONS_MAX`: those of one user, 64 by default.
    pub(crate) user_executions_max: usize,
    /// `WEIR_PIPELINES_INPUT_BYTES_MAX`: bytes of an input, 262144 by default.
    pub(crate) input_bytes_max: usize,
    /// `WEIR_PIPELINES_OUTPUT_BYTES_MAX`: bytes of a step's output, 196608 by default.
    pub(crate) output_bytes_max: usize,
    /// `WEIR_PIPELINES_OUTPUTS_BYTES_MAX`: bytes of the outputs of all steps of an execution, 1048576 by default.
    pub(crate) outputs_bytes_max: usize,
    /// `WEIR_PIPELINES_TTL_MS`: how long an ended execution remains readable, 3600000 by default.
    pub(crate) ttl_ms: u64,
    /// `WEIR_PIPELINES_HTTP_ALLOW`: the authorities that steps may call, `HOST` or `HOST:PORT`, separated by spaces.
    pub(crate) http_allow: Vec<String>,
}

/// Settings of authentication, CORS and rate limits. The elements of lists are separated by spaces.
#[derive(Debug)]
pub(crate) struct Auth {
    /// `WEIR_AUTH_MODE`: `none` by default, or `required`.
    pub(crate) required: bool,
    /// `WEIR_AUTH_LOOPBACK`: `true` if only this machine reaches the listener; `false` by default.
    pub(crate) loopback: bool,
    /// `WEIR_AUTH_DIR`: the folder with the keys, `/auth` by default.
    pub(crate) dir: PathBuf,
    /// `WEIR_AUTH_ISSUERS`
    pub(crate) issuers: Vec<String>,
    /// `WEIR_AUTH_AUDIENCES`
    pub(crate) audiences: Vec<String>,
    /// `WEIR_AUTH_LEEWAY_S`: 30 by default.
    pub(crate) leeway_s: u64,
    /// `WEIR_AUTH_TICKET_TTL_S`: 30 by default.
    pub(crate) ticket_ttl_s: u64,
    /// `WEIR_AUTH_CORS_ORIGINS`
    pub(crate) cors_origins: Vec<String>,
    /// `WEIR_AUTH_CORS_CREDENTIALS`: `false` by default.
    pub(crate) cors_credentials: bool,
    /// `WEIR_AUTH_REQUESTS_PER_S` and `WEIR_AUTH_REQUESTS_BURST`: 100 and 500 by default.
    pub(crate) requests: Rate,
    /// `WEIR_AUTH_PUBLISHES_PER_S` and `WEIR_AUTH_PUBLISHES_BURST`: 200 and 1000 by default.
    pub(crate) publishes: Rate,
    /// `WEIR_AUTH_CONNECTIONS_MAX`: subscriptions of one user, 100 by default.
    pub(crate) connections_max: usize,
}

/// A rate limit of one user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    /// Sustained rate.
    pub(crate) per_s: NonZeroU32,
    /// Size of the burst.
    pub(crate) burst: NonZeroU32,
}

impl Settings {
    /// The settings, or an error text that names the invalid variable.
    pub(crate) fn current() -> Result<&'static Self, &'static str> {
        static SETTINGS: OnceLock<Result<Settings, String>> = OnceLock::new();
        SETTINGS.get_or_init(|| Self::read(|name| std::env::var(name).ok())).as_ref().map_err(String::as_str)
    }

    fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let number = |name: &str, default: u64| match variable(name) {
            None => Ok(default),
            Some(text) => match text.trim().parse::<u64>() {
                Ok(number) if number > 0 => Ok(number),
                _ => Err(format!("`{name}` must be a whole number above 0, and is `{text}`")),
            },
        };
        let model = |name: &str, default: &str| match variable(name) {
            None => Ok(default.to_owned()),
            // Empty switches the step off. White space alone is more likely a mistake.
            Some(text) if text.is_empty() => Ok(text),
            Some(text) if text.trim().is_empty() => {
                Err(format!("`{name}` must name a model, or be empty to switch the step off, and is white space"))
            }
            Some(text) => Ok(text.trim().to_owned()),
        };
        Ok(Self {
            hosts: variable("WEIR_HTTP_HOSTS")
                .unwrap_or_default()
                .split_ascii_whitespace()
                .map(str::to_owned)
                .collect(),
            body_bytes_max: number("WEIR_HTTP_BODY_BYTES_MAX", 1_048_576)?,
            body_timeout_ms: number("WEIR_HTTP_BODY_TIMEOUT_MS", 30_000)?,
            request_timeout_ms: number("WEIR_HTTP_REQUEST_TIMEOUT_MS", 60_000)?,
            has_item_deadlines: choice(&variable, "WEIR_INFER_DEADLINES", ["none", "host"])?.unwrap_or(false),
            sentiment_model: model("WEIR_STEPS_SENTIMENT", "sentiment")?,
            summary_model: model("WEIR_STEPS_SUMMARY", "embeddings")?,
            entities_model: model("WEIR_STEPS_ENTITIES", "entities")?,
            heartbeat_ms: number("WEIR_EVENTS_HEARTBEAT_MS", 15_000)?,
            retry_ms: u32::try_from(number("WEIR_EVENTS_RETRY_MS", 3000)?).unwrap_or(u32::MAX),
            grip: match variable("WEIR_GRIP").as_deref() {
                None | Some("off") => Grip::Off,
                Some("host") => Grip::Host,
                Some("proxy") => Grip::Proxy,
                Some(text) => return Err(format!("`WEIR_GRIP` must be `off`, `host` or `proxy`, and is `{text}`")),
            },
            keeper: choice(&variable, "WEIR_KEEPER", ["0", "1"])?.unwrap_or(false),
            lease_ms: number("WEIR_EVENTS_LEASE_MS", 10_000)?,
            instance: variable("WEIR_INSTANCE").filter(|name| !name.is_empty()),
            shared: choice(&variable, "WEIR_EVENTS_SHARED", ["false", "true"])?.unwrap_or(true),
            ui: match variable("WEIR_GATEWAY_UI").as_deref() {
                None | Some("on") => true,
                Some("off") => false,
                Some(text) => return Err(format!("`WEIR_GATEWAY_UI` must be `on` or `off`, and is `{text}`")),
            },
            pipelines: Pipelines::read(&variable, number)?,
            auth: Auth::read(&variable)?,
            sessions: Sessions {
                live_max: number("WEIR_SESSIONS_LIVE_MAX", 100_000)?,
                user_live_max: number("WEIR_SESSIONS_USER_LIVE_MAX", 25_000)?,
                expire_ms_max: match variable("WEIR_SESSIONS_EXPIRE_MS_MAX").as_deref() {
                    Some("0") => 0,
                    _ => number("WEIR_SESSIONS_EXPIRE_MS_MAX", 604_800_000)?,
                },
                memory_bytes_max: number("WEIR_SESSIONS_MEMORY_BYTES_MAX", 256 << 20)?,
                checkpoint_ms: number("WEIR_SESSIONS_CHECKPOINT_MS", 250)?,
                ended_ttl_ms: number("WEIR_SESSIONS_ENDED_TTL_MS", 600_000)?,
                channel_events_max: number("WEIR_EVENTS_EVENTS_MAX", 1000)?,
                channel_bytes_max: number("WEIR_EVENTS_BYTES_MAX", 1 << 20)?,
            },
        })
    }
}

impl Pipelines {
    fn read(
        variable: &impl Fn(&str) -> Option<String>,
        number: impl Fn(&str, u64) -> Result<u64, String>,
    ) -> Result<Self, String> {
        let size =
            |name: &str, default: u64| Ok::<_, String>(usize::try_from(number(name, default)?).unwrap_or(usize::MAX));
        Ok(Self {
            dir: variable("WEIR_PIPELINES_DIR").map_or_else(|| "/pipelines".into(), PathBuf::from),
            executions_max: size("WEIR_PIPELINES_EXECUTIONS_MAX", 256)?,
            user_executions_max: size("WEIR_PIPELINES_USER_EXECUTIONS_MAX", 64)?,
            input_bytes_max: size("WEIR_PIPELINES_INPUT_BYTES_MAX", 262_144)?,
            output_bytes_max: size("WEIR_PIPELINES_OUTPUT_BYTES_MAX", 196_608)?,
            outputs_bytes_max: size("WEIR_PIPELINES_OUTPUTS_BYTES_MAX", 1_048_576)?,
            ttl_ms: number("WEIR_PIPELINES_TTL_MS", 3_600_000)?,
            http_allow: variable("WEIR_PIPELINES_HTTP_ALLOW")
                .unwrap_or_default()
                .split_ascii_whitespace()
                .map(str::to_ascii_lowercase)
                .collect(),
        })
    }
}

impl Auth {
    fn read(variable: &impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let choice = |name: &str, choices: [&str; 2]| choice(variable, name, choices).map(|set| set.unwrap_or(false));
        let list = |name: &str| -> Vec<String> {
            variable(name).unwrap_or_default().split_ascii_whitespace().map(str::to_owned).collect()
        };
        let whole = |name: &str, default: u32| match variable(name) {
            None => Ok(default),
            Some(text) => {
                text.trim().parse::<u32>().map_err(|_| format!("`{name}` must be a whole number, and is `{text}`"))
            }
        };
        let positive = |name: &str, default: u32| {
            NonZeroU32::new(whole(name, default)?).ok_or_else(|| format!("`{name}` must be above 0"))
        };
        let flags = ["false", "true"];
        Ok(Self {
            required: choice("WEIR_AUTH_MODE", ["none", "required"])?,
            loopback: choice("WEIR_AUTH_LOOPBACK", flags)?,
            dir: variable("WEIR_AUTH_DIR").map_or_else(|| "/auth".into(), PathBuf::from),
            issuers: list("WEIR_AUTH_ISSUERS"),
            audiences: list("WEIR_AUTH_AUDIENCES"),
            leeway_s: whole("WEIR_AUTH_LEEWAY_S", 30)?.into(),
            ticket_ttl_s: positive("WEIR_AUTH_TICKET_TTL_S", 30)?.get().into(),
            cors_origins: list("WEIR_AUTH_CORS_ORIGINS"),
            cors_credentials: choice("WEIR_AUTH_CORS_CREDENTIALS", flags)?,
            requests: Rate {
                per_s: positive("WEIR_AUTH_REQUESTS_PER_S", 100)?,
                burst: positive("WEIR_AUTH_REQUESTS_BURST", 500)?,
            },
            publishes: Rate {
                per_s: positive("WEIR_AUTH_PUBLISHES_PER_S", 200)?,
                burst: positive("WEIR_AUTH_PUBLISHES_BURST", 1000)?,
            },
            connections_max: positive("WEIR_AUTH_CONNECTIONS_MAX", 100)?.get() as usize,
        })
    }
}

/// Whether a variable has the second of two values; none if it is not set.
fn choice(variable: impl Fn(&str) -> Option<String>, name: &str, [no, yes]: [&str; 2]) -> Result<Option<bool>, String> {
    match variable(name) {
        None => Ok(None),
        Some(text) if text == no => Ok(Some(false)),
        Some(text) if text == yes => Ok(Some(true)),
        Some(text) => Err(format!("`{name}` must be `{no}` or `{yes}`, and is `{text}`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, String> {
        Settings::read(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn defaults() {
        let settings = read(&[]).expect("no variable is needed");
        assert_eq!(settings.body_bytes_max, 1_048_576);
        assert_eq!(settings.body_timeout_ms, 30_000);
        assert_eq!(settings.request_timeout_ms, 60_000);
        assert_eq!(settings.sentiment_model, "sentiment");
        assert_eq!(settings.summary_model, "embeddings");
        assert_eq!(settings.entities_model, "entities");
        assert_eq!((settings.heartbeat_ms, settings.retry_ms), (15_000, 3000));
        assert_eq!(settings.grip, Grip::Off);
        // Clients are remote unless the host says otherwise.
        assert!(!settings.auth.required && !settings.auth.loopback && !settings.auth.cors_credentials);
    }

    #[test]
    fn variables_set_the_settings() {
        let settings = read(&[("WEIR_HTTP_BODY_BYTES_MAX", " 7 "), ("WEIR_STEPS_SUMMARY", "mini")]);
        let settings = settings.expect("both can be understood");
        assert_eq!((settings.body_bytes_max, settings.summary_model.as_str()), (7, "mini"));
        assert_eq!(read(&[("WEIR_STEPS_ENTITIES", "")]).expect("a step that is off").entities_model, "");
    }

    #[test]
    fn malformed_variable_is_refused_with_its_name() {
        for (name, value) in [
            ("WEIR_HTTP_BODY_BYTES_MAX", "1MB"),
            ("WEIR_HTTP_BODY_TIMEOUT_MS", "0"),
            ("WEIR_HTTP_REQUEST_TIMEOUT_MS", "-1"),
            ("WEIR_HTTP_REQUEST_TIMEOUT_MS", ""),
            ("WEIR_STEPS_ENTITIES", " "),
            ("WEIR_INFER_DEADLINES", "yes"),
            ("WEIR_GRIP", "1"),
            ("WEIR_GATEWAY_UI", "yes"),
            ("WEIR_AUTH_MODE", "optional"),
            ("WEIR_AUTH_LOOPBACK", "yes"),
            ("WEIR_KEEPER", "yes"),
            ("WEIR_EVENTS_SHARED", "0"),
            ("WEIR_AUTH_REQUESTS_PER_S", "0"),
            ("WEIR_AUTH_LEEWAY_S", "-1"),
        ] {
            let error = read(&[(name, value)]).expect_err(name);
            assert!(error.contains(name), "{error}");
        }
    }
}

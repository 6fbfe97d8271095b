//! The lines of `weir serve` on a terminal: the URL of the page, the models, and the location of stored data.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde_json::{Value, json};
use weir_config::{Config, EventsStore};

/// A server that has started.
pub(crate) struct StartLines<'a> {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    pub(crate) config: &'a Config,
    /// The names of its models, those for text generation last.
    pub(crate) models: &'a [String],
}

impl StartLines<'_> {
    /// The lines. The first one is that of a start without a terminal, with the URL of the page.
    pub(crate) fn text(&self) -> String {
        let Self { address, config, models } = self;
        let page = self.page().map(|page| format!(" (page: {page})")).unwrap_or_default();
        let names = if models.is_empty() { "none".to_owned() } else { models.join(", ") };
        let from = match config.models.dir.as_os_str().is_empty() {
            true => String::new(),
            false => format!(" from {}", config.models.dir.display()),
        };
        format!("listening on http://{address}{page}\nmodels: {names}{from}\nstored data: {}\n", stored_data(config))
    }

    /// The same as a JSON object; `page` is `null` if the page is switched off.
    pub(crate) fn json(&self) -> Value {
        let store = match self.config.events.store {
            EventsStore::Memory => "memory",
            EventsStore::Disk => "disk",
            EventsStore::Redis => "redis",
        };
        json!({
            "address": self.address.to_string(),
            "url": self.url(),
            "page": self.page(),
            "models": self.models,
            "store": store,
            "stored_data": stored_data(self.config),
        })
    }

    /// The URL by which this machine reaches the server.
    fn url(&self) -> String {
        format!("http://{}", reachable(self.address))
    }

    fn page(&self) -> Option<String> {
        (self.config.gateway.ui == weir_config::Switch::On).then(|| format!("{}/", self.url()))
    }
}

/// The address by which this machine reaches a listener.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Where channels, sessions and executions are stored. A URL is shown without its user and password.
fn stored_data(config: &Config) -> String {
    let events = &config.events;
    let store = match events.store {
        EventsStore::Memory => "in memory until the end of this process (events.store)".to_owned(),
        EventsStore::Disk => events.path.display().to_string(),
        EventsStore::Redis => {
            let (scheme, rest) = events.redis_url.split_once("://").unwrap_or(("redis", events.redis_url.as_str()));
            format!("{scheme}://{}", rest.rsplit_once('@').map_or(rest, |(_, host)| host))
        }
    };
    match events.file.as_os_str().is_empty() {
        true => store,
        false => format!("{store}; a copy of all events in {}", events.file.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_name_the_page_the_models_and_the_store() {
        let mut config = Config::default();
        let models = ["entities".to_owned(), "sentiment".to_owned()];
        let lines = |config: &Config, address: &str, models: &[String]| {
            let address = address.parse().unwrap();
            StartLines { address, config, models }.text().lines().map(str::to_owned).collect::<Vec<_>>()
        };
        config.models.dir = "models".into();
        assert_eq!(
            lines(&config, "0.0.0.0:8080", &models),
            [
                "listening on http://0.0.0.0:8080 (page: http://127.0.0.1:8080/)",
                "models: entities, sentiment from models",
                "stored data: in memory until the end of this process (events.store)",
            ]
        );
        config.events.store = EventsStore::Redis;
        config.events.redis_url = "rediss://user:p@ss@redis.example:6380/1".to_owned();
        config.gateway.ui = weir_config::Switch::Off;
        config.models.dir = std::path::PathBuf::new();
        let redis = lines(&config, "[::1]:80", &[]);
        assert_eq!(
            redis,
            ["listening on http://[::1]:80", "models: none", "stored data: rediss://redis.example:6380/1"]
        );
        let address = "0.0.0.0:80".parse().unwrap();
        assert_eq!(
            StartLines { address, config: &config, models: &models }.json(),
            json!({
                "address": "0.0.0.0:80", "url": "http://127.0.0.1:80", "page": null, "models": ["entities", "sentiment"],
                "store": "redis", "stored_data": "rediss://redis.example:6380/1",
            })
        );
        config.events.store = EventsStore::Disk;
        config.events.path = "events.redb".into();
        config.events.file = "events.ndjson".into();
        let disk = lines(&config, "127.0.0.1:80", &[]);
        assert_eq!(disk[2], "stored data: events.redb; a copy of all events in events.ndjson");
    }
}

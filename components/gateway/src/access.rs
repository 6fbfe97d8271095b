//! Who asks, and whether they may: `weir-auth` with this host's clock, files and store.
//!
//! Rates and connections are counted in this instance. Keys are read from a folder and looked at again once a second; while
//! a file cannot be understood nobody is let in, for it may be the one that takes somebody's right away.

use std::{
    cell::{OnceCell, RefCell},
    fs, io,
    path::Path,
    rc::Rc,
    time::SystemTime,
};

use weir_auth::{
    api_key::ApiKeys,
    cors::{Cors, Headers, Page},
    credential::Credentials,
    guard::{Entry, Guard},
    identity::Identity,
    jwt::{TokenRules, Verifier},
    key::KeySet,
    refusal,
    scope::Action,
    ticket::TicketKeys,
};
use weir_codec::{channel::Channel, host::HostNames, problem::Problem};
use weir_core::{
    process::Now,
    quota::{Connections, Quota, QuotaConfig},
};

use crate::{
    bindings::weir::stream::events,
    owners, publish,
    settings::{Auth, Rate, Settings},
};

/// How long what was read of the keys is not looked at again.
const RELOAD_NS: u64 = 1_000_000_000;
/// Users whose rate is remembered.
const USERS_MAX: usize = 10_000;
/// Subscriptions in one instance, whoever has them; the host bounds the requests of an instance below this.
const CONNECTIONS_MAX: usize = 100_000;
/// The files of the folder of keys.
const FILES: [&str; 3] = ["token_keys", "api_keys", "ticket_secrets"];
const NS_PER_S: u64 = 1_000_000_000;

/// What a request says of who sends it.
pub(crate) struct Asking<'a> {
    /// Names in lower case.
    pub(crate) headers: Vec<(&'a str, &'a [u8])>,
    pub(crate) path: &'a str,
    /// Without the question mark.
    pub(crate) query: &'a str,
    pub(crate) host: Option<&'a str>,
    /// True for all but `GET` and `HEAD`.
    pub(crate) changes: bool,
}

impl Asking<'_> {
    /// The page that the request comes from.
    fn page(&self) -> Page<'_> {
        Page { origin: self.text("origin"), host: self.host, fetch_site: self.text("sec-fetch-site") }
    }

    fn text(&self, name: &str) -> Option<&str> {
        // What is no UTF-8 is no origin of anybody: it is refused as an empty one is.
        let value = self.headers.iter().find(|(header, _)| *header == name)?.1;
        Some(std::str::from_utf8(value).unwrap_or_default())
    }
}

/// Who may ask, in this instance.
pub(crate) struct Access {
    settings: &'static Auth,
    cors: Cors,
    /// The names that requests may be for; none where every name may be.
    host_names: Option<HostNames>,
    loaded: RefCell<Loaded>,
    requests: RefCell<Quota>,
    publishes: RefCell<Quota>,
    connections: RefCell<Connections>,
}

/// The guard as the files were when they were last read.
#[derive(Default)]
struct Loaded {
    guard: Option<Result<Rc<Guard>, String>>,
    looked_ns: u64,
    stamps: Vec<Option<(SystemTime, u64)>>,
}

impl Access {
    /// The one of this instance.
    pub(crate) fn current() -> Result<&'static Self, Problem> {
        thread_local! {
            static ACCESS: OnceCell<Result<&'static Access, String>> = const { OnceCell::new() };
        }
        // There is one thread and one of these for as long as the instance lives.
        let made = ACCESS
            .with(|access| access.get_or_init(|| Self::new().map(|access| &*Box::leak(Box::new(access)))).clone());
        made.map_err(|error| Problem::internal(&error))
    }

    fn new() -> Result<Self, String> {
        let all = Settings::current().map_err(str::to_owned)?;
        let settings = &all.auth;
        let hosts: Vec<&str> = all.hosts.iter().map(String::as_str).collect();
        let host_names = HostNames::new(&hosts).map_err(|error| format!("`WEIR_HTTP_HOSTS`: {error}"))?;
        // Where a token is asked for, a page that came here by a name of its own has none to show. Where everybody may
        // come, only the operator knows the names.
        let is_checked = !settings.required && (settings.loopback || !host_names.is_empty());
        let origins: Vec<&str> = settings.cors_origins.iter().map(String::as_str).collect();
        let cors = Cors::new(&origins, settings.cors_credentials).map_err(|error| error.to_string())?;
        let quota = |rate: Rate| {
            let config =
                QuotaConfig { per_period: rate.per_s, period_ns: NS_PER_S, burst: rate.burst, keys_max: USERS_MAX };
            RefCell::new(Quota::new(config))
        };
        Ok(Self {
            settings,
            cors,
            host_names: is_checked.then_some(host_names),
            loaded: RefCell::default(),
            requests: quota(settings.requests),
            publishes: quota(settings.publishes),
            connections: RefCell::new(Connections::new(settings.connections_max, CONNECTIONS_MAX)),
        })
    }

    /// Whether requests show who sends them.
    pub(crate) fn required(&self) -> bool {
        self.settings.required
    }

    /// Checks the host that the request is for.
    pub(crate) fn check_host(&self, asking: &Asking<'_>) -> Result<(), Problem> {
        match &self.host_names {
            Some(names) => Ok(names.check(asking.host)?),
            None => Ok(()),
        }
    }

    /// The headers for the answer to a page of another origin.
    pub(crate) fn page(&self, asking: &Asking<'_>) -> Result<Headers, Problem> {
        self.cors.answer(&asking.page()).map_err(Problem::from)
    }

    /// The headers for the answer to a preflight, if this is one.
    pub(crate) fn preflight(&self, asking: &Asking<'_>, methods: &str) -> Result<Option<Headers>, Problem> {
        match (asking.text("origin"), asking.text("access-control-request-method")) {
            (Some(_), method @ Some(_)) => Ok(Some(self.cors.preflight(&asking.page(), method, methods)?)),
            _ => Ok(None),
        }
    }

    /// Who asks. A ticket is used up by it.
    pub(crate) async fn identify(&self, asking: &Asking<'_>, now: Now) -> Result<Identity, Problem> {
        let guard = self.guard(now.monotonic_ns)?;
        let shown = Credentials::find(asking.headers.iter().copied(), asking.query)?;
        if shown.is_cookie_alone() {
            self.cors.check_cookie(&asking.page(), asking.changes)?;
        }
        let now_s = now.unix_ns / NS_PER_S;
        // A name that the operator allows counts as one of loopback.
        let host = if self.host_names.is_some() { None } else { asking.host };
        let identity = match guard.enter(&shown, asking.path, host, now_s)? {
            Entry::Known(identity) => identity,
            Entry::Ticket(unclaimed) => {
                let ttl_ms = unclaimed.claim_ttl_s(now_s).saturating_mul(1000);
                let first = events::claim(format!("ticket:{}", unclaimed.id()), ttl_ms).await;
                unclaimed.claimed(first.map_err(publish::problem)?)?
            }
        };
        self.rate(&self.requests, &identity, now)?;
        Ok(identity)
    }

    /// Lets a user publish once more.
    pub(crate) fn publishes(&self, identity: &Identity, now: Now) -> Result<(), Problem> {
        self.rate(&self.publishes, identity, now)
    }

    /// Takes a place among the subscriptions of a user.
    pub(crate) fn connect(&'static self, identity: &Identity) -> Result<Connection, Problem> {
        // Where nobody is asked, all are the same user, and the host's bounds are the only ones.
        let user = self.required().then(|| identity.user().to_owned());
        if let Some(user) = &user {
            self.connections.borrow_mut().open(user).map_err(|error| refusal::connection_refused(&error))?;
        }
        Ok(Connection { access: self, user })
    }

    /// The guard as the files are now.
    pub(crate) fn guard(&self, now_ns: u64) -> Result<Rc<Guard>, Problem> {
        let mut loaded = self.loaded.borrow_mut();
        let fresh = loaded.guard.is_some() && now_ns.saturating_sub(loaded.looked_ns) < RELOAD_NS;
        if !fresh {
            let stamps: Vec<_> = FILES.iter().map(|file| stamp(&self.settings.dir.join(file))).collect();
            if loaded.guard.is_none() || loaded.stamps != stamps {
                let guard = self.load();
                if let Err(error) = &guard {
                    eprintln!("error: nobody is let in: {error}");
                }
                loaded.guard = Some(guard.map(Rc::new));
                loaded.stamps = stamps;
            }
            loaded.looked_ns = now_ns;
        }
        match &loaded.guard {
            Some(Ok(guard)) => Ok(guard.clone()),
            // What is wrong with the keys is for the log.
            _ if self.required() => Err(Problem::refused(
                503,
                "auth_unavailable",
                "Nobody can be let in",
                "the keys of this server cannot be read",
                Some(1000),
            )),
            _ => Err(Problem::refused(
                403,
                "auth_not_configured",
                "Not allowed",
                "this server listens on an address that other machines can reach (http.listen) and has no authentication, so \
                 channels, sessions, pipelines and executions are refused; set auth.mode to \"required\" and auth.dir to a \
                 folder of keys, or listen on 127.0.0.1",
                None,
            )),
        }
    }

    fn load(&self) -> Result<Guard, String> {
        let auth = self.settings;
        if !auth.required {
            return Guard::open(auth.loopback).map_err(|error| error.to_string());
        }
        let [keys, api_keys, secrets] = FILES.map(|file| read(&auth.dir.join(file)));
        let rules =
            || TokenRules { issuers: auth.issuers.clone(), audiences: auth.audiences.clone(), leeway_s: auth.leeway_s };
        let tokens = keys?
            .map(|keys| {
                let keys = KeySet::from_file(&keys).map_err(|error| format!("{}: {error}", FILES[0]))?;
                Verifier::new(keys, rules()).map_err(|error| error.to_string())
            })
            .transpose()?;
        let api_keys = api_keys?
            .map(|records| ApiKeys::from_file(&records).map_err(|error| format!("{}: {error}", FILES[1])))
            .transpose()?;
        let tickets = secrets?
            .map(|secrets| {
                let lines = secrets.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
                let lines: Vec<&[u8]> = lines.filter(|line| !line.is_empty()).collect();
                TicketKeys::new(&lines, auth.ticket_ttl_s).map_err(|error| format!("{}: {error}", FILES[2]))
            })
            .transpose()?;
        Guard::closed(tokens, api_keys, tickets).map_err(|error| error.to_string())
    }

    fn rate(&self, quota: &RefCell<Quota>, identity: &Identity, now: Now) -> Result<(), Problem> {
        match self.required() {
            true => {
                quota.borrow_mut().take(now.monotonic_ns, identity.user()).map_err(|error| refusal::limited(&error))
            }
            false => Ok(()),
        }
    }
}

/// A place among the subscriptions of a user, given back when it is dropped.
pub(crate) struct Connection {
    access: &'static Access,
    user: Option<String>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(user) = &self.user {
            self.access.connections.borrow_mut().close(user);
        }
    }
}

/// Whether somebody may do something with a channel: by a scope, or because it is theirs. What is not allowed is not there.
pub(crate) async fn may(identity: &Identity, action: Action, channel: &Channel, path: &str) -> Result<(), Problem> {
    if identity.may(action, channel, None).is_ok() {
        return Ok(());
    }
    let owner = owners::find(channel).await?;
    identity.may(action, channel, owner.as_deref()).map_err(|error| refusal::not_found(error, path))
}

/// Whether a file is still the one that was read.
fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, String> {
    match fs::read(path) {
        Ok(contents) => Ok(Some(contents)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

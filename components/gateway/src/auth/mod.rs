//! Authentication, rate limits and CORS: `weir-auth` with the clock, files and store of the host.
//!
//! Rates and connections are counted in this instance. Keys are read from a folder, which is checked for changes once a
//! second. While a file is invalid every request is refused, since that file may be the one that revokes a key; the log
//! and `/readyz` name the file and the reason.

pub(crate) mod claims;

use std::{
    cell::{OnceCell, RefCell},
    fmt, fs, io,
    path::Path,
    rc::Rc,
    time::SystemTime,
};

use weir_auth::{
    api_key::{ApiKeys, RecordError},
    cors::{Cors, Headers, Page},
    credential::Credentials,
    guard::{Authenticated, Guard, GuardError},
    identity::Identity,
    jwt::{TokenRules, Verifier},
    key::KeySet,
    key_file, refusal,
    ticket::TicketKeys,
};
use weir_codec::http::{host::HostNames, problem::Problem};
use weir_core::{
    quota::{Connections, Quota, QuotaConfig},
    time::Now,
};

use crate::platform::{
    bindings::weir::stream::events,
    settings::{Auth, Grip, Rate, Settings},
    store,
};

/// The interval in which the files of keys are checked for changes.
const RELOAD_NS: u64 = 1_000_000_000;
/// Maximum number of users with a rate limiter in memory.
const USERS_MAX: usize = 10_000;
/// Maximum number of subscriptions in one instance, of all users; the host bounds the requests of an instance below
/// this.
const CONNECTIONS_MAX: usize = 100_000;
/// The files of the folder of keys.
const FILES: [&str; 4] = [TOKEN_KEYS, TOKEN_SECRETS, API_KEYS, TICKET_SECRETS];
const TOKEN_KEYS: &str = "token_keys";
const TOKEN_SECRETS: &str = "token_secrets";
const API_KEYS: &str = "api_keys";
const TICKET_SECRETS: &str = "ticket_secrets";
const NS_PER_S: u64 = 1_000_000_000;

/// The credentials of a request.
pub(crate) struct RequestCredentials<'a> {
    /// Names in lower case.
    pub(crate) headers: Vec<(&'a str, &'a [u8])>,
    pub(crate) path: &'a str,
    /// Without the question mark.
    pub(crate) query: &'a str,
    pub(crate) host: Option<&'a str>,
    /// True for all methods except `GET` and `HEAD`.
    pub(crate) changes: bool,
}

impl RequestCredentials<'_> {
    /// The page that the request comes from.
    fn page(&self) -> Page<'_> {
        Page { origin: self.text("origin"), host: self.host, fetch_site: self.text("sec-fetch-site") }
    }

    fn text(&self, name: &str) -> Option<&str> {
        // A value that is not UTF-8 cannot be an origin; it is refused like an empty one.
        let value = self.headers.iter().find(|(header, _)| *header == name)?.1;
        Some(std::str::from_utf8(value).unwrap_or_default())
    }
}

/// The access control of this instance.
pub(crate) struct Access {
    settings: &'static Auth,
    cors: Cors,
    /// The host names that requests may be addressed to; none if every name is accepted.
    host_names: Option<HostNames>,
    loaded: RefCell<GuardCache>,
    requests: RefCell<Quota>,
    publishes: RefCell<Quota>,
    connections: RefCell<Connections>,
}

/// The guard that was made from the files when they were last read.
#[derive(Default)]
struct GuardCache {
    guard: Option<Result<Rc<Guard>, LoadError>>,
    checked_ns: u64,
    stamps: Vec<Option<(SystemTime, u64)>>,
}

/// Why the files of keys cannot be used.
#[derive(Debug, Clone)]
struct LoadError {
    /// The reason for the operator's log.
    reason: String,
    /// The reason for `/readyz`, without any content of a file.
    public: String,
}

impl From<String> for LoadError {
    fn from(reason: String) -> Self {
        Self { public: reason.clone(), reason }
    }
}

impl Access {
    /// Reads the keys, so that errors in them are logged at the start.
    pub(crate) fn wake(now: Now) {
        // Invalid settings are reported to every request.
        if let Ok(access) = Self::current()
            && access.required()
        {
            let _ = access.guard(now.monotonic_ns);
        }
    }

    /// The access control of this instance.
    pub(crate) fn current() -> Result<&'static Self, Problem> {
        thread_local! {
            static ACCESS: OnceCell<Result<&'static Access, String>> = const { OnceCell::new() };
        }
        // One thread, and one value for the lifetime of the instance.
        let access_result = ACCESS
            .with(|access| access.get_or_init(|| Self::new().map(|access| &*Box::leak(Box::new(access)))).clone());
        access_result.map_err(|error| Problem::internal(&error))
    }

    fn new() -> Result<Self, String> {
        let all = Settings::current().map_err(str::to_owned)?;
        let settings = &all.auth;
        let hosts: Vec<&str> = all.hosts.iter().map(String::as_str).collect();
        let host_names = HostNames::new(&hosts).map_err(|error| format!("`WEIR_HTTP_HOSTS`: {error}"))?;
        // With authentication the check is not needed: a page that reaches this server through DNS rebinding has no
        // token. Without it, names are checked on loopback, and elsewhere only if the operator has configured the names
        // of this server.
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

    /// True when requests must carry credentials.
    pub(crate) fn required(&self) -> bool {
        self.settings.required
    }

    /// Checks the host that the request is for.
    pub(crate) fn check_host(&self, credentials: &RequestCredentials<'_>) -> Result<(), Problem> {
        match &self.host_names {
            Some(names) => Ok(names.check(credentials.host)?),
            None => Ok(()),
        }
    }

    /// The CORS headers of the response to a page of another origin.
    pub(crate) fn cors_headers(&self, credentials: &RequestCredentials<'_>) -> Result<Headers, Problem> {
        self.cors.response_headers(&credentials.page()).map_err(Problem::from)
    }

    /// The CORS headers of the response to a preflight request, if this is one.
    pub(crate) fn preflight(
        &self,
        credentials: &RequestCredentials<'_>,
        methods: &str,
    ) -> Result<Option<Headers>, Problem> {
        match (credentials.text("origin"), credentials.text("access-control-request-method")) {
            (Some(_), method @ Some(_)) => Ok(Some(self.cors.preflight(&credentials.page(), method, methods)?)),
            _ => Ok(None),
        }
    }

    /// Identifies the user, and takes the request from the user's rate. A ticket is consumed.
    pub(crate) async fn identify(&self, credentials: &RequestCredentials<'_>, now: Now) -> Result<Identity, Problem> {
        let guard = self.guard(now.monotonic_ns)?;
        let presented = Credentials::find(credentials.headers.iter().copied(), credentials.query)?;
        if presented.is_cookie_alone() {
            self.cors.check_cookie(&credentials.page(), credentials.changes)?;
        }
        let now_s = now.unix_ns / NS_PER_S;
        // Where host names are checked, a name that the operator allows is treated like one of loopback.
        let host = if self.host_names.is_some() { None } else { credentials.host };
        let identity = match guard.authenticate(&presented, credentials.path, host, now_s)? {
            Authenticated::Identity(identity) => identity,
            Authenticated::Ticket(unclaimed) => {
                let ttl_ms = unclaimed.claim_ttl_s(now_s).saturating_mul(1000);
                let first = events::claim(unclaimed.claim_key(), ttl_ms).await;
                let first = first.map_err(store::problem)?;
                // Read after the claim: a store that has lost its claims in between has no label, or another one.
                let label = claims::find_label().await?.unwrap_or_default();
                unclaimed.into_identity(first, &label)?
            }
        };
        self.rate(&self.requests, &identity, now)?;
        Ok(identity)
    }

    /// Takes one publish from the rate of a user.
    pub(crate) fn check_publish_rate(&self, identity: &Identity, now: Now) -> Result<(), Problem> {
        self.rate(&self.publishes, identity, now)
    }

    /// Takes a permit for a connection of a user. Weir's own host counts connections itself, for the whole process.
    pub(crate) fn connect(&'static self, identity: &Identity, grip: Grip) -> Result<SubscriptionPermit, Problem> {
        // Without authentication all clients are the same user, and the host's bounds are the only ones.
        let user = (self.required() && grip != Grip::Host).then(|| identity.user().to_owned());
        if let Some(user) = &user {
            self.connections.borrow_mut().open(user).map_err(|error| refusal::connection_refused(&error))?;
        }
        Ok(SubscriptionPermit { access: self, user })
    }

    /// The current guard; reads the files again if they have changed.
    pub(crate) fn guard(&self, now_ns: u64) -> Result<Rc<Guard>, Problem> {
        let mut loaded = self.loaded.borrow_mut();
        let fresh = loaded.guard.is_some() && now_ns.saturating_sub(loaded.checked_ns) < RELOAD_NS;
        if !fresh {
            let stamps: Vec<_> = FILES.iter().map(|file| stamp(&self.settings.dir.join(file))).collect();
            if loaded.guard.is_none() || loaded.stamps != stamps {
                let guard = self.load();
                if let Err(error) = &guard {
                    eprintln!("error: auth.dir: every request is refused: {}", error.reason);
                }
                loaded.guard = Some(guard.map(Rc::new));
                loaded.stamps = stamps;
            }
            loaded.checked_ns = now_ns;
        }
        match &loaded.guard {
            Some(Ok(guard)) => Ok(guard.clone()),
            _ if self.required() => {
                Err(keys_unavailable("the keys of this server cannot be read; `GET /readyz` says why".to_owned()))
            }
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

    /// Checks that requests can be authenticated; the problem has the reason if not.
    pub(crate) fn check_keys(&self, now_ns: u64) -> Result<(), Problem> {
        let problem = match self.guard(now_ns) {
            Ok(_) => return Ok(()),
            Err(problem) => problem,
        };
        match &self.loaded.borrow().guard {
            Some(Err(error)) => Err(keys_unavailable(format!("auth.dir: {}", error.public))),
            _ => Err(problem),
        }
    }

    fn load(&self) -> Result<Guard, LoadError> {
        let auth = self.settings;
        if !auth.required {
            return Guard::open(auth.loopback).map_err(|error| error.to_string().into());
        }
        let contents = |file: &str| read(&auth.dir.join(file));
        let in_file = |file: &'static str| move |error: &dyn fmt::Display| format!("{file}: {error}");
        let mut keys = Vec::new();
        if let Some(contents) = contents(TOKEN_KEYS)? {
            let file = key_file::read_keys(&contents).map_err(|error| in_file(TOKEN_KEYS)(&error))?;
            for skipped in &file.skipped {
                eprintln!("warn: auth.dir: {TOKEN_KEYS}: a key is not used: {skipped}");
            }
            keys.extend(file.keys);
        }
        if let Some(contents) = contents(TOKEN_SECRETS)? {
            keys.extend(key_file::read_secrets(&contents).map_err(|error| in_file(TOKEN_SECRETS)(&error))?);
        }
        let tokens = match keys.is_empty() {
            true => None,
            false => {
                let keys = KeySet::new(keys).map_err(|error| format!("{TOKEN_KEYS} and {TOKEN_SECRETS}: {error}"))?;
                let (issuers, audiences) = (auth.issuers.clone(), auth.audiences.clone());
                let rules = TokenRules { issuers, audiences, leeway_s: auth.leeway_s };
                Some(Verifier::new(keys, rules).map_err(|error| error.to_string())?)
            }
        };
        let api_keys = match contents(API_KEYS)? {
            None => None,
            Some(contents) => Some(ApiKeys::from_file(&contents).map_err(|error| {
                let reason = in_file(API_KEYS)(&error);
                match error {
                    // The error quotes the file, so it is not for `/readyz`.
                    RecordError::Scope { line, .. } => {
                        LoadError { reason, public: format!("{API_KEYS}: line {line}: a scope is not valid") }
                    }
                    _ => reason.into(),
                }
            })?),
        };
        let tickets = match contents(TICKET_SECRETS)? {
            None => None,
            Some(contents) => {
                let keys = TicketKeys::from_file(&contents, auth.ticket_ttl_s);
                Some(keys.map_err(|error| in_file(TICKET_SECRETS)(&error))?)
            }
        };
        Guard::closed(tokens, api_keys, tickets).map_err(|error| match error {
            GuardError::NoKeys => format!("there is no key in {TOKEN_KEYS}, {TOKEN_SECRETS} or {API_KEYS}").into(),
            other => other.to_string().into(),
        })
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

/// A permit for a subscription of a user, returned when it is dropped.
pub(crate) struct SubscriptionPermit {
    access: &'static Access,
    user: Option<String>,
}

impl SubscriptionPermit {
    /// The user that the subscription counts for; none where the host counts or users are not identified.
    pub(crate) fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }
}

impl Drop for SubscriptionPermit {
    fn drop(&mut self) {
        if let Some(user) = &self.user {
            self.access.connections.borrow_mut().close(user);
        }
    }
}

fn keys_unavailable(detail: String) -> Problem {
    Problem::refused(503, "auth_unavailable", "Authentication is unavailable", detail, Some(1000))
}

/// The time of the last change of a file and its size in bytes, to detect changes.
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

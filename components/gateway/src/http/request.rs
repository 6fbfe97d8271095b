//! A request: its head, its bounds, its credentials, and reading its body.

use std::{borrow::Cow, cell::RefCell};

use spin_sdk::{
    http::{HeaderMap, Method},
    wasip3::http::types::{self, Response},
};
use weir_auth::{cors, identity::Identity, limits::Limits};
use weir_codec::{
    channels::hold::{SOCKET_HEADER, USER_HEADER},
    http::{content_type, framing::Framing, host, prefer::Prefer, problem::Problem, target},
};
use weir_core::time::Now;

use super::{
    body::{self, BodyReader},
    request_id,
    response::{Client, streaming},
};
use crate::{
    auth::{Access, RequestCredentials},
    platform::{
        clock::Deadline,
        settings::{Grip, Settings},
        wording,
    },
};

/// The media types of a streamed response.
pub(crate) const STREAM_FORMS: [&str; 2] = ["application/x-ndjson", "text/event-stream"];
/// The media types of a body of lines, or of one of them.
pub(crate) const LINES_OR_JSON: [&str; 2] = ["application/x-ndjson", "application/json"];
/// The liveness probe, which is independent of the settings and the models.
pub(crate) const LIVEZ: &str = "/livez";
/// The media types of a body that is read whole.
const JSON: [&str; 1] = ["application/json"];

/// A request without its body.
pub(crate) struct RequestContext<'a> {
    /// The path in its normalized form.
    pub(crate) path: Cow<'a, str>,
    /// The query without the question mark.
    pub(crate) query: &'a str,
    /// The `Host` header or `:authority`.
    pub(crate) host: Option<&'a str>,
    pub(crate) method: &'a Method,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) request_id: String,
    /// The CORS headers of the response.
    pub(crate) cors_headers: cors::Headers,
    /// The user that was identified, for the host that counts the requests of users.
    pub(crate) user: RefCell<Option<String>>,
    pub(crate) began: Now,
}

impl RequestContext<'_> {
    /// Checks the head of the request: its bounds, and the page that it comes from.
    pub(crate) fn enter(&mut self) -> Result<(), Problem> {
        if let Cow::Owned(normal) = target::normalize_path(&self.path)? {
            self.path = Cow::Owned(normal);
        }
        target::check_query(self.query)?;
        let hosts = self.headers.get_all("host").iter().map(|host| host.as_bytes());
        // Hosts other than Weir's own may pass neither.
        self.host = host::of_request(self.host, hosts, false)?;
        if self.path == LIVEZ {
            return Ok(());
        }
        let access = Access::current()?;
        let credentials = self.credentials();
        let cors_headers = access.cors_headers(&credentials);
        let target = format!("{}?{}", self.path, self.query);
        let checked = Limits::default().check_head(&target, credentials.headers.iter().copied());
        let checked = checked.map_err(Problem::from).and_then(|()| access.check_host(&credentials));
        // `Vary` also on a refusal: caches must not serve the response for one origin to another.
        let (cors_headers, refused) =
            cors_headers.map_or_else(|refused| (vec![cors::Cors::vary()], Err(refused)), |headers| (headers, Ok(())));
        self.cors_headers = cors_headers;
        refused?;
        checked
    }

    /// Identifies the user. A ticket is consumed.
    pub(crate) async fn identify(&self) -> Result<Identity, Problem> {
        let access = Access::current()?;
        let identity = access.identify(&self.credentials(), self.began).await?;
        if access.required() {
            *self.user.borrow_mut() = Some(identity.user().to_owned());
        }
        Ok(identity)
    }

    /// The header that names the user to a host that holds connections; other intermediaries would forward it to the client.
    pub(crate) fn user_header(&self) -> Option<(&'static str, String)> {
        let user = self.user.borrow().clone()?;
        let is_host = Settings::current().is_ok_and(|settings| matches!(settings.grip, Grip::Host));
        is_host.then_some((USER_HEADER, user))
    }

    /// The credentials of the request.
    pub(crate) fn credentials(&self) -> RequestCredentials<'_> {
        let headers: Vec<_> = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        let changes = !matches!(*self.method, Method::GET | Method::HEAD);
        RequestCredentials { headers, path: &self.path, query: self.query, host: self.host, changes }
    }

    /// The reader of a streamed body. For a client that sent `Expect`, waits for the first part of the body, so that
    /// the response does not begin before the body does.
    pub(crate) async fn body_reader(&self, body: types::Request, settings: &Settings) -> Result<BodyReader, Problem> {
        let mut reader = BodyReader::open(body);
        reader.may_be_quiet = settings.grip == Grip::Host && self.header(SOCKET_HEADER).is_some();
        if self.header("expect").is_some() {
            let timeout_ms = settings.body_timeout_ms;
            let began = Deadline::after(self.began, timeout_ms).bound(reader.wait()).await;
            began.ok_or_else(|| Problem::body_timeout(timeout_ms))?;
        }
        Ok(reader)
    }

    /// A streaming response in a framing, and its writer.
    pub(crate) fn streaming(&self, framing: Framing) -> Result<(Response, Client), Problem> {
        self.streaming_as(framing.content_type(), Vec::new())
    }

    /// A streaming response with a content type and further headers, and its writer.
    pub(crate) fn streaming_as(
        &self,
        content_type: &str,
        more: Vec<(&'static str, String)>,
    ) -> Result<(Response, Client), Problem> {
        let mut headers = vec![
            ("content-type", content_type.to_owned()),
            ("cache-control", "no-store".to_owned()),
            ("vary", "accept".to_owned()),
            // Proxies that buffer a response would undo the streaming.
            ("x-accel-buffering", "no".to_owned()),
            (request_id::HEADER, self.request_id.clone()),
        ];
        headers.extend(more);
        headers.extend(self.cors_headers.iter().cloned());
        headers.extend(self.user_header());
        streaming(&headers).map_err(|error| Problem::internal(&wording::in_words(&error)))
    }

    /// A JSON body, read whole. Checks its media type and coding.
    pub(crate) async fn json(&self, body: types::Request, settings: &Settings) -> Result<Vec<u8>, Problem> {
        let content_type = self.header("content-type");
        if !content_type::is_json(content_type.as_deref()) {
            return Err(Problem::unsupported_media_type(content_type.as_deref(), &JSON));
        }
        self.encoding()?;
        self.whole(body, settings).await
    }

    /// A body of any type, read whole.
    pub(crate) async fn whole(&self, body: types::Request, settings: &Settings) -> Result<Vec<u8>, Problem> {
        let announced = self.header("content-length").and_then(|length| length.trim().parse().ok());
        body::read(body, announced, settings, self.began).await
    }

    /// Refuses a body with a content coding. An empty list of codings counts as none.
    pub(crate) fn encoding(&self) -> Result<(), Problem> {
        let Some(encoding) = self.header("content-encoding") else { return Ok(()) };
        let is_none = |name: &str| name.is_empty() || name.eq_ignore_ascii_case("identity");
        match encoding.split(',').map(str::trim).all(is_none) {
            true => Ok(()),
            false => Err(Problem::unsupported_encoding(&encoding)),
        }
    }

    /// The value of a header; the values of several headers of one name are joined by commas (RFC 9110, section 5.3).
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let values: Vec<_> = self.headers.get_all(name).iter().collect();
        if values.is_empty() {
            return None;
        }
        let values: Vec<_> = values.into_iter().map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
        Some(values.join(", "))
    }

    /// `Prefer`.
    pub(crate) fn prefer(&self) -> Prefer {
        Prefer::read(self.headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok()))
    }
}

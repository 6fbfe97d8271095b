//! Outgoing HTTP requests of a guest: only to the authorities of an allow-list.
//!
//! The default client of wasmtime sends the requests: HTTP/1.1, over TLS with Mozilla's root certificates if the scheme
//! is `https`, one connection for each request, without redirects and without a proxy.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks, default_send_request};

/// How long a connection may take when the guest sets no timeout.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The authorities that may be called, in lower case.
#[derive(Debug, Clone)]
pub(crate) struct HttpAllowList(Arc<[String]>);

impl HttpAllowList {
    /// An entry `HOST` allows the default port of the scheme, `HOST:PORT` that port with either scheme.
    pub(crate) fn new(allow: &[String]) -> Self {
        Self(allow.iter().map(|entry| entry.to_ascii_lowercase()).collect())
    }

    fn allows(&self, uri: &http::Uri) -> bool {
        let Some(authority) = uri.authority() else { return false };
        if authority.as_str().contains('@') {
            return false;
        }
        let default = if uri.scheme() == Some(&http::uri::Scheme::HTTPS) { 443 } else { 80 };
        let host = authority.host().to_ascii_lowercase();
        let port = match authority.port_u16() {
            Some(port) => port,
            // An invalid port must not be replaced by the default one.
            None if authority.as_str().len() != authority.host().len() => return false,
            None => default,
        };
        let full = format!("{host}:{port}");
        self.0.iter().any(|entry| *entry == full || port == default && *entry == host)
    }
}

type SendResult = (http::Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>);

impl WasiHttpHooks for HttpAllowList {
    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _done: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Result<SendResult, Error>> + Send> {
        if !self.allows(request.uri()) {
            return Box::new(std::future::ready(Err(Error::HttpRequestDenied)));
        }
        let mut options = options.unwrap_or_default();
        options.connect_timeout.get_or_insert(CONNECT_TIMEOUT);
        Box::new(async move {
            let (response, io) = default_send_request(request, Some(options)).await?;
            Ok((response.map(BodyExt::boxed_unsync), Box::new(io) as Box<dyn Future<Output = _> + Send>))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listed_authorities_are_allowed() {
        let allow = ["api.example.org", "127.0.0.1:8080", "[::1]:9000"].map(str::to_owned);
        let outgoing = HttpAllowList::new(&allow);
        let allows = |url: &str| url.parse().is_ok_and(|uri| outgoing.allows(&uri));
        for url in [
            "http://api.example.org/x",
            "https://API.example.org/",
            "https://api.example.org:443/",
            "http://127.0.0.1:8080/",
            "https://127.0.0.1:8080/",
            "http://[::1]:9000/",
        ] {
            assert!(allows(url), "{url}");
        }
        for url in [
            "http://api.example.org:443/",
            "http://api.example.org:/",
            "http://user@api.example.org/",
            "http://api.example.org.evil.org/",
            "http://127.0.0.1/",
            "http://127.0.0.1:8081/",
            "http://[::1]/",
            "/x",
        ] {
            assert!(!allows(url), "{url}");
        }
        let empty = HttpAllowList::new(&[]);
        assert!(!empty.allows(&"http://api.example.org/".parse().unwrap()));
    }

    #[tokio::test]
    async fn request_to_another_authority_is_denied_before_a_connection() {
        let body = http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync();
        let request = http::Request::get("http://127.0.0.1:1/").body(body).unwrap();
        let result = HttpAllowList::new(&[]).send_request(request, None, Box::new(std::future::ready(Ok(()))));
        assert!(matches!(Box::into_pin(result).await, Err(Error::HttpRequestDenied)));
    }
}

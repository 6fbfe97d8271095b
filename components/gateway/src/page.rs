//! The web page for browsers, built from `web/` by `cargo xtask web`: static, without data of the server.

use std::sync::OnceLock;

use spin_sdk::http::Method;
use weir_codec::http::{accept, page};

use crate::{
    http::{request::RequestContext, response::BufferedResponse},
    platform::settings::Settings,
};

const PAGE: &str = include_str!("../page.html");

/// Whether responses at the path of a request depend on `Accept` because the page has a view there.
pub(crate) fn is_offered(request: &RequestContext<'_>, settings: &Settings) -> bool {
    let is_demo = request.path == page::DEMO_PATH;
    // The demonstration uploads files without a token, so it needs a server without authentication or on loopback.
    let is_open = !settings.auth.required || settings.auth.loopback;
    settings.ui && page::has_view(&request.path) && (!is_demo || is_open)
}

/// The page, if the request is one of a browser for a path with a view.
pub(crate) fn response(request: &RequestContext<'_>, settings: &Settings) -> Option<BufferedResponse> {
    let reads = matches!(*request.method, Method::GET | Method::HEAD);
    if !reads || !is_offered(request, settings) || !accept::html(request.header("accept").as_deref()) {
        return None;
    }
    static POLICY: OnceLock<Option<&str>> = OnceLock::new();
    // The page is not served without its content security policy.
    let policy = (*POLICY.get_or_init(|| page::policy(PAGE)))?;
    let reply = BufferedResponse::ok("text/html; charset=utf-8", PAGE.as_bytes());
    Some(
        reply
            .with("content-security-policy", policy)
            .with("referrer-policy", "no-referrer")
            .with("x-content-type-options", "nosniff"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_has_a_policy_that_allows_its_own_script_and_style_only() {
        let policy = page::policy(PAGE).expect("a policy");
        for part in
            ["default-src 'none'", "script-src 'sha256-", "style-src 'sha256-", "require-trusted-types-for 'script'"]
        {
            assert!(policy.contains(part), "{policy}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains("http"));
    }
}

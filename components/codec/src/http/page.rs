//! The HTML page of the gateway: the paths at which a browser receives it, and its content security policy.

/// The demonstration of an upload. It is served if `auth.mode` is `none` or the server listens on loopback only.
pub const DEMO_PATH: &str = "/demo/streaming";

/// The begin of the comment in the page with its content security policy.
const POLICY_BEGIN: &str = "<!-- Content-Security-Policy: ";
const POLICY_END: &str = " -->";

/// True when the page has a view for a normalized path. The resources at `/`, `/executions`, `/executions/{id}`,
/// `/sessions/{id}` and `/pipelines/{name}` are JSON for clients that do not ask for HTML.
pub fn has_view(path: &str) -> bool {
    let is_one = |prefix: &str| path.strip_prefix(prefix).is_some_and(|id| !id.is_empty() && !id.contains('/'));
    matches!(path, "/" | "/executions" | "/channels" | "/server" | DEMO_PATH)
        || ["/executions/", "/sessions/", "/pipelines/"].into_iter().any(is_one)
}

/// The content security policy of a page, with the hashes of its script and style; `None` if it has no such comment.
pub fn policy(page: &str) -> Option<&str> {
    let (_, rest) = page.split_once(POLICY_BEGIN)?;
    let (policy, _) = rest.split_once(POLICY_END)?;
    let is_header = policy.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    (!policy.is_empty() && is_header).then_some(policy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn view_is_one_of_the_resources_or_a_path_of_the_page() {
        for path in [
            "/",
            "/executions",
            "/executions/exec_1",
            "/sessions/s",
            "/pipelines/a.b",
            "/channels",
            "/server",
            DEMO_PATH,
        ] {
            assert!(has_view(path), "{path}");
        }
        for path in [
            "",
            "/executions/",
            "/sessions",
            "/sessions/s/context",
            "/pipelines",
            "/v1/models",
            "/demo",
            "/channels/x",
            "//",
        ] {
            assert!(!has_view(path), "{path}");
        }
    }

    #[test]
    fn policy_is_the_comment_of_the_page() {
        assert_eq!(
            policy("<!doctype html>\n<!-- Content-Security-Policy: default-src 'none' -->\n"),
            Some("default-src 'none'")
        );
        for page in ["", "<html>", "<!-- Content-Security-Policy:  -->", "<!-- Content-Security-Policy: a\r\nb: c -->"]
        {
            assert_eq!(policy(page), None, "{page}");
        }
    }
}

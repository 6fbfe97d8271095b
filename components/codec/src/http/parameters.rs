//! The parameters in the query of each route. Weir's own routes refuse unknown ones. Routes in the API of another server ignore them, as
//! those servers do, and so do probes and documents, to which load balancers and monitors append parameters of their own.

use crate::{
    channels::{filter, route::ChannelRoute, subscribe::LAST_EVENT_ID},
    generation::{dialect::DialectKind, route::GenerationRoute},
    http::{route::Route, router::RouteMatch},
    inference::query::decode,
    json::field::{ERRORS_MAX, RequestError, finish, unknown},
    pipelines::route::PipelineRoute,
};

/// The parameter of every route that authenticates by a ticket.
const TICKET: &str = "ticket";
/// The parameters of a subscription.
const SUBSCRIPTION: [&str; 4] = [LAST_EVENT_ID, filter::FIELDS[0], filter::FIELDS[1], filter::FIELDS[2]];

/// The parameters of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parameters {
    /// These, and [`TICKET`].
    Known(&'static [&'static str]),
    /// The reader of the route's query refuses unknown ones.
    Read,
    /// Unknown ones are ignored.
    Any,
}

impl RouteMatch {
    /// Checks that a query, without its question mark, has no unknown parameters. Values are not checked.
    ///
    /// # Errors
    ///
    /// Every unknown parameter, up to one more than [`ERRORS_MAX`].
    pub fn check_query(&self, method: &str, query: &str) -> Result<(), RequestError> {
        match self.parameters(method) {
            Parameters::Known(known) => check_known(query, known),
            Parameters::Read | Parameters::Any => Ok(()),
        }
    }

    fn parameters(&self, method: &str) -> Parameters {
        use Parameters::{Any, Known, Read};
        match self {
            Self::Own(route) => match route {
                Route::ProcessStream | Route::ProcessBatch => Known(&[]),
                Route::Task(_) | Route::Transcript | Route::Annotate => Read,
                // Clients of OpenAI and Anthropic send a limit and a position.
                Route::Models => Any,
                Route::Hub | Route::Predict | Route::TeiEmbed | Route::EmbedSparse => Any,
                Route::Rerank | Route::Embeddings | Route::Moderations => Any,
                Route::Index | Route::Livez | Route::Readyz | Route::OpenApi => Any,
            },
            Self::Generation(route) => match route {
                GenerationRoute::Generate(DialectKind::Weir) => Known(&["detach"]),
                GenerationRoute::Generation(_) if method == "DELETE" => Known(&[]),
                GenerationRoute::Generation(_) => Known(&["stream", "starting_after"]),
                GenerationRoute::Generate(_) | GenerationRoute::Content { .. } => Any,
                GenerationRoute::CountMessages | GenerationRoute::CountContent { .. } => Any,
                GenerationRoute::Response(_) | GenerationRoute::CancelResponse(_) => Any,
            },
            Self::Channels(route) => match route {
                ChannelRoute::Subscribe(_) | ChannelRoute::Socket(_) => Known(&SUBSCRIPTION),
                ChannelRoute::PublishWorkflow(_) | ChannelRoute::PublishAnalysis(_) => Known(&[]),
                ChannelRoute::PublishUser(_) | ChannelRoute::Sockets | ChannelRoute::Tickets => Known(&[]),
                ChannelRoute::Health => Any,
            },
            Self::Sessions(_) => Known(&[]),
            Self::Pipelines(PipelineRoute::Executions | PipelineRoute::Upload) => Read,
            Self::Pipelines(_) => Known(&[]),
        }
    }
}

/// Checks that a query has only parameters of a list, and [`TICKET`].
fn check_known(query: &str, known: &[&str]) -> Result<(), RequestError> {
    let names = query.split('&').filter(|pair| !pair.is_empty());
    let names = names.map(|pair| decode(pair.split_once('=').map_or(pair, |(name, _)| name)));
    let others = names.filter(|name| name != TICKET && !known.contains(&&**name));
    let errors = others.map(|name| unknown(name.into_owned(), known)).take(ERRORS_MAX + 1).collect();
    finish((), errors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        channels::route::{CHANNEL_ROUTES, SOCKET_ROUTES},
        generation::route::GENERATION_ROUTES,
        http::route::ROUTES,
        pipelines::{execution_id, list_query::ListQuery, route::PIPELINE_ROUTES, upload::UploadQuery},
        transcripts::{config::SessionRequest, route::SESSION_ROUTES},
    };

    /// The routes that ignore unknown parameters.
    const LENIENT: [&str; 26] = [
        "GET /",
        "GET /livez",
        "GET /readyz",
        "GET /openapi.json",
        "GET /v1/models",
        "GET /stream/health",
        "POST /models/{name}",
        "POST /predict",
        "POST /embed",
        "POST /embed_sparse",
        "POST /rerank",
        "POST /v1/embeddings",
        "POST /v1/moderations",
        "POST /v1/chat/completions",
        "POST /v1/completions",
        "POST /v1/responses",
        "GET /v1/responses/{response_id}",
        "POST /v1/responses/{response_id}/cancel",
        "POST /v1/messages",
        "POST /v1/messages/count_tokens",
        "POST /v1beta/models/{model}:generateContent",
        "POST /v1beta/models/{model}:streamGenerateContent",
        "POST /v1/ui/chat",
        // Not in the index.
        "POST /v1/models/{model}:generateContent",
        "POST /models/{model}:generateContent",
        "POST /v1beta/models/{model}:countTokens",
    ];

    /// Whether a route refuses a query, by its own reader or by [`RouteMatch::check_query`].
    fn is_refused(method: &str, path: &str, query: &str) -> bool {
        let id = execution_id::from_random([7; 16]);
        let path = path.replace("{execution_id}", &id);
        let path = path.replace("{kind}", "workflow").replace(['{', '}'], "");
        let route = RouteMatch::match_path(&path).unwrap();
        if route.check_query(method, query).is_err() {
            return true;
        }
        match route {
            RouteMatch::Own(Route::Task(task)) => crate::inference::query::Query::read(query, task).is_err(),
            RouteMatch::Own(Route::Transcript) => SessionRequest::from_query(query).is_err(),
            RouteMatch::Own(Route::Annotate) => SessionRequest::annotate_from_query(query).is_err(),
            RouteMatch::Pipelines(PipelineRoute::Executions) => ListQuery::read(query).is_err(),
            RouteMatch::Pipelines(PipelineRoute::Upload) => UploadQuery::read(query).is_err(),
            _ => false,
        }
    }

    #[test]
    fn unknown_parameter_is_refused_on_every_route_of_its_own_api() {
        let own = ROUTES.iter().map(|(path, route)| (if route.posts() { "POST" } else { "GET" }, *path));
        let others = GENERATION_ROUTES.iter().chain(&CHANNEL_ROUTES).chain(&SESSION_ROUTES).chain(&PIPELINE_ROUTES);
        let mut routes: Vec<_> = own.chain(others.chain(&SOCKET_ROUTES).copied()).collect();
        routes.extend(LENIENT[23..].iter().map(|route| route.split_once(' ').unwrap()));
        for (method, path) in routes {
            let is_lenient = LENIENT.contains(&format!("{method} {path}").as_str());
            for query in ["unknown=1", "%75nknown", "&&unknown=1&", "unknown=1&ticket=a", "=1"] {
                assert_eq!(is_refused(method, path, query), !is_lenient, "{method} {path}?{query}");
            }
            assert!(!is_refused(method, path, ""), "{method} {path}");
        }
    }

    #[test]
    fn error_names_the_parameter_and_the_known_ones() {
        let route = RouteMatch::match_path("/stream/workflow/w").unwrap();
        let check = |query: &str| route.check_query("GET", query).map_err(|error| error.to_string());
        assert_eq!(check("last_event_id=1-2&events=a&steps=b&throttle_ms=5&ticket=t"), Ok(()));
        assert_eq!(
            check("last_event=1-2"),
            Err("`last_event` is not known here (did you mean `last_event_id`?); there are last_event_id, events, steps, \
                 throttle_ms"
                .to_owned())
        );
        let many = vec!["x"; 1000].join("&");
        let Err(RequestError::Invalid(errors)) = route.check_query("GET", &many) else { panic!("refused") };
        assert_eq!(errors.len(), ERRORS_MAX + 1);
    }
}

//! The paths of channels: subscriptions, publishing, sockets and tickets.

use spin_sdk::{
    http::Method,
    wasip3::{http::types, spawn},
};
use weir_auth::{guard, identity::Identity, scope::Scopes};
use weir_codec::{
    channels::{
        event::ticket_json,
        filter::EventFilter,
        publish::TicketBody,
        route::{Channel, ChannelRoute},
    },
    http::{accept, content_type, framing::Framing, problem::Problem, target},
    json::field::{FieldError, FieldReason, RequestError},
};

use super::{existence, grip, multiplex, publish, subscribe};
use crate::{
    auth::{Access, claims},
    http::{
        request::RequestContext,
        request_id,
        response::{BufferedResponse, RouteResponse},
    },
    platform::{
        clock,
        settings::{Grip, Settings},
    },
};

impl RequestContext<'_> {
    /// Answers a path of the channels; all of them identify the user first.
    pub(crate) async fn answer_channels(
        &self,
        route: ChannelRoute,
        body: types::Request,
    ) -> Result<RouteResponse, Problem> {
        let identity = self.identify().await?;
        match route {
            ChannelRoute::Subscribe(channel) => self.subscribe(channel, &identity).await,
            ChannelRoute::PublishWorkflow(_) | ChannelRoute::PublishAnalysis(_) | ChannelRoute::PublishUser(_) => {
                let settings = Settings::current().map_err(Problem::internal)?;
                let body = self.json(body, settings).await?;
                // The time of the event is when its body has arrived.
                publish::publish(&route, &body, &identity, &self.path, clock::now()).await.map(RouteResponse::Whole)
            }
            ChannelRoute::Tickets => {
                let settings = Settings::current().map_err(Problem::internal)?;
                let body = self.json(body, settings).await?;
                self.ticket(&body, &identity).await.map(RouteResponse::Whole)
            }
            ChannelRoute::Socket(channel) => self.socket(Some(channel), identity, body).await,
            ChannelRoute::Sockets => self.socket(None, identity, body).await,
            // Dispatch answers this path, without an identity.
            ChannelRoute::Health => Err(Problem::not_found(&self.path)),
        }
    }

    /// Follows a channel; 204 when it is finished and the client has all of its events.
    async fn subscribe(&self, channel: Channel, identity: &Identity) -> Result<RouteResponse, Problem> {
        const FORMS: [&str; 2] = ["text/event-stream", "application/x-ndjson"];
        let settings = Settings::current().map_err(Problem::internal)?;
        existence::authorize_follow(identity, &channel, &self.path).await?;
        let framing =
            accept::subscription(self.header("accept").as_deref()).ok_or_else(|| Problem::not_acceptable(&FORMS))?;
        let after = subscribe::cursor(self.headers.get("last-event-id").map(|id| id.as_bytes()), self.query)?;
        let filter = EventFilter::from_query(self.query)?;
        if !subscribe::has_more(&channel, after).await? {
            return Ok(RouteResponse::Whole(BufferedResponse::empty()));
        }
        if self.method == Method::HEAD {
            let reply = BufferedResponse::ok(framing.content_type(), b"".as_slice()).with("x-accel-buffering", "no");
            return Ok(RouteResponse::Whole(reply));
        }
        let expires_at_s = identity.expires_at_s();
        if settings.grip != Grip::Off {
            let user = Access::current()?.required().then(|| identity.user().to_owned());
            let reply = grip::hold_response(channel, after, framing, settings, expires_at_s, user, filter).await?;
            return Ok(RouteResponse::Whole(reply.with("vary", "accept").with("x-accel-buffering", "no")));
        }
        let permit = Access::current()?.connect(identity, settings.grip)?;
        let followed = subscribe::follow(channel, after, framing, settings, expires_at_s, permit, filter).await?;
        let (response, client) = self.streaming(framing)?;
        spawn(followed.run(client));
        Ok(RouteResponse::Streaming(response))
    }

    /// Serves a client that follows several channels over one stream. `first` is the channel that the path names.
    async fn socket(
        &self,
        first: Option<Channel>,
        identity: Identity,
        body: types::Request,
    ) -> Result<RouteResponse, Problem> {
        let settings = Settings::current().map_err(Problem::internal)?;
        let content_type = self.header("content-type");
        if !content_type::is_ndjson(content_type.as_deref()) {
            return Err(Problem::unsupported_media_type(content_type.as_deref(), &["application/x-ndjson"]));
        }
        self.encoding()?;
        let first = match first {
            None => None,
            Some(channel) => {
                existence::authorize_follow(&identity, &channel, &self.path).await?;
                Some((channel, subscribe::cursor(None, self.query)?, EventFilter::from_query(self.query)?))
            }
        };
        let permit = Access::current()?.connect(&identity, settings.grip)?;
        let socket = multiplex::Socket { identity, path: self.path.clone().into_owned(), settings, _permit: permit };
        let body = self.body_reader(body, settings).await?;
        let (response, client) = self.streaming(Framing::Ndjson)?;
        let began = self.began;
        spawn(multiplex::run_socket(socket, first, body, began, client));
        Ok(RouteResponse::Streaming(response))
    }

    /// A ticket for a page that cannot send a header.
    async fn ticket(&self, body: &[u8], identity: &Identity) -> Result<BufferedResponse, Problem> {
        let access = Access::current()?;
        if !access.required() {
            return Err(Problem::not_implemented(
                "this server has no authentication (auth.mode), so there are no tickets",
            ));
        }
        let TicketBody { path, scopes } = TicketBody::from_json(body)?;
        // A ticket is compared with the normalized path of the request that uses it.
        let path = target::normalize_path(&path)?;
        let limit = scopes.map(|scopes| Scopes::read(scopes.iter().map(String::as_str))).transpose();
        let limit = limit.map_err(|error| {
            let error = FieldError::new("scope", FieldReason::NotAllowed, format!("`scope`: {error}"));
            RequestError::Invalid(vec![error])
        })?;
        let now = clock::now();
        let guard: std::rc::Rc<guard::Guard> = access.guard(now.monotonic_ns)?;
        let (random, now_s) = (request_id::random(), now.unix_ns / 1_000_000_000);
        let issued = guard.issue_ticket(identity, &path, limit, &random, &claims::label().await?, now_s)?;
        Ok(BufferedResponse::created(ticket_json(&issued.ticket, issued.expires_s.saturating_mul(1000))))
    }
}

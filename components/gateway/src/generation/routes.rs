//! The paths of generated text.

use std::rc::Rc;

use futures::{
    FutureExt as _,
    future::{Either, select},
};
use spin_sdk::{
    http::Method,
    wasip3::{http::types, spawn},
};
use weir_auth::{identity::Identity, scope::Action};
use weir_codec::{
    channels::route::Channel,
    generation::{
        ApiRequest, chat, completions,
        dialect::{DialectKind, StreamFraming},
        gemini, messages, responses,
        resume::{self, Resume},
        route::GenerationRoute,
        ui, weir,
    },
    http::problem::Problem,
};

use super::{
    client::{self, Computation},
    registry::{Registry, not_found},
    response::{self, ChannelEvents, GenerationResponse, Source},
    running::{RunningGeneration, problem},
    start::StartingGeneration,
};
use crate::{
    channels::authorize::authorize,
    http::{
        request::RequestContext,
        response::{BufferedResponse, RouteResponse},
    },
    platform::{
        clock::{self, Deadline},
        settings::Settings,
    },
};

/// The header that names a generation.
const ID_HEADER: &str = "x-weir-generation";
/// How long the head of a stream waits for the prompt, so that a failure before the first token has a status of its
/// own, in milliseconds. After that, comments keep the connection alive.
const HEAD_MS: u64 = 10_000;
/// How long the response to a cancel waits for the end of the generation, in milliseconds.
const CANCEL_MS: u64 = 5_000;

impl RequestContext<'_> {
    /// Handles a path of generated text, for an identified user.
    pub(crate) async fn generation(
        &self,
        route: GenerationRoute,
        body: types::Request,
    ) -> Result<RouteResponse, Problem> {
        let identity = self.identify().await?;
        let settings = Settings::current().map_err(Problem::internal)?;
        let dialect = route.dialect();
        match route {
            GenerationRoute::Generation(id) => self.generation_of(&id, dialect, &identity, settings).await,
            GenerationRoute::Response(id) => self.generation_of(&id, dialect, &identity, settings).await,
            GenerationRoute::CancelResponse(id) => {
                let channel = resume::channel(&id)?;
                self.cancel_generation(&channel, &identity).await?;
                let generated = response::collect_so_far(&channel).await?;
                Ok(RouteResponse::Whole(BufferedResponse::json(responses::state_json(&generated))))
            }
            GenerationRoute::Generate(kind) => {
                let body = self.json(body, settings).await?;
                let request = match kind {
                    DialectKind::Weir => weir::read(&body)?,
                    DialectKind::Chat => chat::read(&body)?,
                    DialectKind::Completions => completions::read(&body)?,
                    DialectKind::Responses => responses::read(&body)?,
                    DialectKind::Messages => messages::read(&body, true)?,
                    DialectKind::Ui | DialectKind::Gemini => ui::read(&body)?,
                };
                let framing = match kind {
                    DialectKind::Weir => self.weir_framing()?,
                    kind => kind.framing(),
                };
                self.generate(request, framing, &identity, settings).await
            }
            GenerationRoute::Content { model, stream } => {
                let body = self.json(body, settings).await?;
                let is_sse = resume::is_sse(self.query);
                let framing = if is_sse { StreamFraming::Sse } else { StreamFraming::JsonArray };
                self.generate(gemini::read(&body, &model, stream)?, framing, &identity, settings).await
            }
            GenerationRoute::CountMessages => {
                let body = self.json(body, settings).await?;
                let tokens = self.count(messages::read(&body, false)?, settings).await?;
                Ok(RouteResponse::Whole(BufferedResponse::json(messages::count_json(tokens))))
            }
            GenerationRoute::CountContent { model } => {
                let body = self.json(body, settings).await?;
                let tokens = self.count(gemini::read(&body, &model, false)?, settings).await?;
                Ok(RouteResponse::Whole(BufferedResponse::json(gemini::count_json(tokens))))
            }
        }
    }

    fn weir_framing(&self) -> Result<StreamFraming, Problem> {
        const FORMS: [&str; 3] = ["text/plain", "application/x-ndjson", "text/event-stream"];
        weir::framing(self.header("accept").as_deref()).ok_or_else(|| Problem::not_acceptable(&FORMS))
    }

    /// Generates text.
    async fn generate(
        &self,
        mut request: ApiRequest,
        framing: StreamFraming,
        identity: &Identity,
        settings: &'static Settings,
    ) -> Result<RouteResponse, Problem> {
        request.detach |= resume::detach(self.query)?.unwrap_or(false);
        let (dialect, is_stream, is_detached) = (request.dialect.clone(), request.stream, request.detach);
        // A stream has no deadline: it may take as long as its client waits.
        let deadline_ms =
            (!is_stream && !is_detached).then(|| u32::try_from(settings.request_timeout_ms).unwrap_or(u32::MAX));
        let starting = StartingGeneration::start(request, identity, deadline_ms, self.began).await?;
        let id = starting.id().to_owned();
        if !is_stream {
            // Normally the deadline ends the generation; this timeout is for an engine that does not.
            let timeout_ms = settings.request_timeout_ms;
            let running = Deadline::after(clock::now(), timeout_ms.saturating_mul(2)).bound(starting.run()).await;
            let running = running.unwrap_or_else(|| Err(Problem::request_timeout(timeout_ms)))?;
            // The client reads a detached response later.
            if is_detached && dialect.kind == DialectKind::Responses {
                let generated = response::collect_so_far(&running.channel).await?;
                let reply = BufferedResponse::json(responses::state_json(&generated));
                return Ok(RouteResponse::Whole(reply.with(ID_HEADER, id)));
            }
            let reply = collect(ChannelEvents::follow(running.channel.clone(), running.share()).await?, dialect.kind);
            return reply.await.map(|reply| RouteResponse::Whole(reply.with(ID_HEADER, id)));
        }
        // After this wait, an error before the first token is an event of the stream. Dialects without comments have no
        // keep-alive, so their head waits longer.
        let is_without_comments = dialect.kind == DialectKind::Gemini || framing == StreamFraming::Text;
        let head_ms =
            if is_without_comments { settings.request_timeout_ms } else { HEAD_MS.min(settings.request_timeout_ms) };
        let response = GenerationResponse { dialect, framing, after: None, ends_with_client: !is_detached, settings };
        let head = Box::pin(Deadline::after(clock::now(), head_ms).passed());
        let source = match select(starting.run().boxed_local(), head).await {
            Either::Left((running, _)) => Source::Running(running?),
            Either::Right(((), starting)) => Source::Starting(starting),
        };
        self.stream(response, source, &id)
    }

    fn stream(&self, generation: GenerationResponse, source: Source, id: &str) -> Result<RouteResponse, Problem> {
        let mut headers = vec![(ID_HEADER, id.to_owned())];
        headers.extend(generation.dialect.kind.stream_header().map(|(name, value)| (name, value.to_owned())));
        let (response, client) = self.streaming_as(generation.framing.content_type(), headers)?;
        spawn(generation.write(source, client));
        Ok(RouteResponse::Streaming(response))
    }

    /// Reads or cancels an existing generation.
    async fn generation_of(
        &self,
        id: &str,
        dialect: DialectKind,
        identity: &Identity,
        settings: &'static Settings,
    ) -> Result<RouteResponse, Problem> {
        let channel = resume::channel(id)?;
        if *self.method == Method::DELETE {
            self.cancel_generation(&channel, identity).await?;
            return Ok(RouteResponse::Whole(BufferedResponse::empty()));
        }
        authorize(identity, Action::Read, &channel, &self.path).await?;
        let Some(started) = response::started(&channel).await? else { return Err(not_found(&self.path)) };
        let is_response = dialect == DialectKind::Responses;
        if is_response && started.dialect.kind != DialectKind::Responses {
            return Err(not_found(&self.path));
        }
        let Resume { stream, after } = Resume::read(self.query, self.header("last-event-id").as_deref())?;
        let kind = started.dialect.kind;
        if stream || after.is_some() {
            let framing = match kind {
                DialectKind::Weir => match self.weir_framing()? {
                    // Plain text has no cursors to resume from.
                    StreamFraming::Text => StreamFraming::Sse,
                    framing => framing,
                },
                kind => kind.framing(),
            };
            let share = settings.auth.required.then(|| identity.user().to_owned());
            let source = Source::Channel(ChannelEvents::follow(channel, share).await?);
            let response =
                GenerationResponse { dialect: started.dialect, framing, after, ends_with_client: false, settings };
            return self.stream(response, source, id);
        }
        if is_response {
            let generated = response::collect_so_far(&channel).await?;
            return Ok(RouteResponse::Whole(BufferedResponse::json(responses::state_json(&generated))));
        }
        let share = settings.auth.required.then(|| identity.user().to_owned());
        let channel = ChannelEvents::follow(channel, share).await?;
        let timeout_ms = settings.request_timeout_ms;
        let result = Deadline::after(self.began, timeout_ms).bound(collect(channel, kind)).await;
        result.unwrap_or_else(|| Err(Problem::request_timeout(timeout_ms))).map(RouteResponse::Whole)
    }

    /// Cancels a generation, and waits for its end for at most [`CANCEL_MS`].
    async fn cancel_generation(&self, channel: &Channel, identity: &Identity) -> Result<(), Problem> {
        authorize(identity, Action::Cancel, channel, &self.path).await?;
        let running: Option<Rc<RunningGeneration>> = Registry::current().find(channel.id());
        if let Some(running) = running {
            running.cancel();
            Deadline::after(clock::now(), CANCEL_MS).bound(running.ended()).await;
            return Ok(());
        }
        match response::started(channel).await? {
            Some(_) => Ok(()),
            None => Err(not_found(&self.path)),
        }
    }

    /// Counts the tokens of a prompt. The prompt is computed, and nothing is generated from it.
    async fn count(&self, request: ApiRequest, settings: &Settings) -> Result<u32, Problem> {
        let mut request = request.request;
        (request.tokens_max, request.format) = (Some(1), None);
        let model = client::choose_model(request.model.clone(), self.began).await?;
        let deadline_ms = u32::try_from(settings.request_timeout_ms).unwrap_or(u32::MAX);
        let mut computation = Computation::start(request, model, Some(deadline_ms), false).await;
        match computation.wait_begun().await {
            // Another server may say it at the end alone.
            Ok(begun) if begun.prompt_tokens == 0 => Ok(computation.prompt_tokens().await.unwrap_or(0)),
            Ok(begun) => Ok(begun.prompt_tokens),
            Err(failure) => Err(client::problem(failure, self.began).await),
        }
    }
}

/// The response with a whole generation, once it has ended.
async fn collect(channel: ChannelEvents, kind: DialectKind) -> Result<BufferedResponse, Problem> {
    let generated = response::collect(channel).await?;
    match &generated.error {
        Some(failed) => Err(problem(failed)),
        None => Ok(BufferedResponse::json(kind.whole_json(&generated))),
    }
}

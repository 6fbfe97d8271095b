//! What clients ask of pipelines and their executions.

use std::{collections::BTreeMap, rc::Rc, sync::Arc};

use spin_sdk::wasip3::http::types;
use weir_auth::{digest, identity::Identity, refusal, scope::Action};
use weir_codec::{
    channels::route::{Channel, ChannelKind},
    http::problem::Problem,
    json::field::{FieldError, FieldReason, RequestError},
    pipelines::{
        definition,
        execution::{self, ExecutionSummary},
        execution_id,
        list_query::{self, ListQuery},
        prefer::Prefer,
        route::PipelineRoute,
        text,
    },
};
use weir_core::pipelines::{Definition, Execution, Json, ReportError, Status};

use super::{
    Pipelines, listing,
    persistence::{self, ExecutionKey},
    resume::{self, OpenResult},
    running::RunningExecution,
};
use crate::{
    auth::Access,
    http::{request::RequestContext, request_id, response::BufferedResponse},
    platform::{
        bindings::weir::stream::{events::Failure, state},
        clock::{self, Deadline},
        lease::{self, RequestLease},
        settings::Settings,
        store, turns,
    },
};

/// Longest `Idempotency-Key`, in bytes.
const KEY_BYTES_MAX: usize = 255;
/// How long an execution may take to begin before another request with its `Idempotency-Key` begins it. One that could not begin gives way at
/// once.
const BEGIN_LEASE_MS: u64 = 10_000;
/// How long a request waits for another that begins the same execution, and how often it looks.
const BEGUN_MS: u64 = 5000;
const LOOK_MS: u64 = 50;
/// How long a cancelled execution may take to be over before its client has an answer.
const CANCEL_MS: u64 = 5000;
/// When to come back to a server that has all the executions that it may have.
const BUSY_RETRY_MS: u32 = 1000;

/// What a request with an `Idempotency-Key` is to do.
enum StartDecision {
    /// An execution.
    New(New),
    /// Nothing: it was started.
    Begun(String),
}

/// An execution to start, with the lease that keeps other requests with the same `Idempotency-Key` from starting it.
struct New {
    id: String,
    lease: Option<RequestLease>,
}

impl RequestContext<'_> {
    /// Answers a path of pipelines or executions, for an identified user.
    pub(crate) async fn pipelines(
        &self,
        route: PipelineRoute,
        body: types::Request,
        identity: &Identity,
    ) -> Result<BufferedResponse, Problem> {
        let pipelines = Pipelines::current().map_err(Problem::internal)?;
        match route {
            PipelineRoute::Pipelines => {
                let all = pipelines.definitions.all();
                let allowed = all.iter().filter(|(name, _)| self.may_start(identity, name).is_ok());
                let listed =
                    allowed.map(|(name, definition)| (name.as_str(), definition.as_deref().map_err(|fault| &**fault)));
                Ok(BufferedResponse::json(execution::pipelines_json(listed).into_bytes()))
            }
            PipelineRoute::Pipeline(name) if self.method.as_str() == "POST" => {
                self.start(pipelines, &name, body, identity).await
            }
            PipelineRoute::Pipeline(name) => {
                let definition = self.definition(pipelines, &name, identity)?;
                Ok(BufferedResponse::json(definition::to_json(&definition).into_bytes()))
            }
            PipelineRoute::Executions => {
                let query = ListQuery::read(self.query)?;
                let all = list(pipelines, identity, &query).await.map_err(store::problem)?;
                Ok(BufferedResponse::json(execution::executions_json(&all).into_bytes()))
            }
            PipelineRoute::Execution(id) if self.method.as_str() == "DELETE" => {
                self.cancel(pipelines, &id, identity).await
            }
            PipelineRoute::Execution(id) => {
                let status = self.status(pipelines, &id, identity, Action::Read).await?;
                let body = turns::run(identity.user(), || execution::status_json(&status).into_bytes()).await;
                Ok(BufferedResponse::json(body))
            }
            PipelineRoute::Upload => self.upload(pipelines, body, identity).await,
            PipelineRoute::Reliability => {
                let snapshot = pipelines.reliability.borrow().snapshot(self.began.monotonic_ns);
                Ok(BufferedResponse::json(execution::reliability_json(&snapshot).into_bytes()))
            }
        }
    }

    /// What is not allowed is not there: both are answered with the nearest of the pipelines that the user may start.
    fn unknown_pipeline(&self, pipelines: &Pipelines, name: &str, identity: &Identity) -> Problem {
        let all = pipelines.definitions.all();
        let allowed = all.iter().map(|(name, _)| name.as_str()).filter(|name| self.may_start(identity, name).is_ok());
        Problem::unknown_name(&self.path, name, &allowed.collect::<Vec<_>>())
    }

    fn may_start(&self, identity: &Identity, name: &str) -> Result<(), Problem> {
        identity.authorize(Action::Start, &channel(name)?, None).map_err(|error| refusal::not_found(error, &self.path))
    }

    pub(super) fn definition(
        &self,
        pipelines: &Pipelines,
        name: &str,
        identity: &Identity,
    ) -> Result<Arc<Definition>, Problem> {
        let unknown = || self.unknown_pipeline(pipelines, name, identity);
        self.may_start(identity, name).map_err(|problem| if problem.status == 404 { unknown() } else { problem })?;
        let definition = pipelines.definition(name).ok_or_else(unknown)?;
        definition.map_err(|fault| fault.problem(name))
    }

    async fn start(
        &self,
        pipelines: &'static Pipelines,
        name: &str,
        body: types::Request,
        identity: &Identity,
    ) -> Result<BufferedResponse, Problem> {
        let settings = Settings::current().map_err(Problem::internal)?;
        let definition = self.definition(pipelines, name, identity)?;
        Access::current()?.check_publish_rate(identity, self.began)?;
        let values: Vec<_> = self.headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok()).collect();
        let prefer = Prefer::read(values);
        let key = self.idempotency_key()?;
        let body = self.json(body, settings).await?;
        let input = turns::run(identity.user(), || text::read(&body)).await.map_err(RequestError::from)?;
        pipelines.check_input(&input)?;
        pipelines.restoration.counted().await?;
        let _starting = pipelines.reserve(identity.user())?;
        let New { id, lease } = match key {
            None => New { id: execution_id::from_random(request_id::random()), lease: None },
            Some(key) => match self.begin(pipelines, name, &key, &input, identity).await? {
                StartDecision::New(new) => new,
                StartDecision::Begun(id) => return self.begun(pipelines, &id, name, prefer, identity).await,
            },
        };
        let live = new_live(pipelines, definition, &id, input, identity).await;
        if let Some(lease) = lease {
            lease.release().await;
        }
        self.begun_live(live?, &id, name, prefer).await
    }

    /// Answers for a running execution: with its end, if the client waits and it comes in time.
    async fn begun_live(
        &self,
        live: Rc<RunningExecution>,
        id: &str,
        name: &str,
        prefer: Prefer,
    ) -> Result<BufferedResponse, Problem> {
        let timeout_ms = Settings::current().map_err(Problem::internal)?.request_timeout_ms;
        if let Some(wait_ms) = prefer.wait_ms(timeout_ms) {
            let end = Deadline::after(clock::now(), wait_ms).earlier(Deadline::after(self.began, timeout_ms));
            // After a takeover by another instance, the end is known there.
            if end.bound(live.clone().ended()).await.is_some() && !live.is_lost() {
                let status = live.execution.borrow().status(clock::now().monotonic_ns);
                let bytes = status.output.as_ref().map_or(0, Json::bytes);
                return Ok(turns::run_over(&live.owner, bytes, || finished(&status, id, prefer)).await);
            }
        }
        Ok(accepted(id, name, prefer))
    }

    /// Answers for an execution that an earlier request with the same key began.
    async fn begun(
        &self,
        pipelines: &'static Pipelines,
        id: &str,
        name: &str,
        prefer: Prefer,
        identity: &Identity,
    ) -> Result<BufferedResponse, Problem> {
        if let Some(live) = pipelines.find(id) {
            return self.begun_live(live, id, name, prefer).await;
        }
        if prefer.wait.is_some() {
            let status = self.status(pipelines, id, identity, Action::Read).await?;
            if is_over(&status) {
                let bytes = status.output.as_ref().map_or(0, Json::bytes);
                return Ok(turns::run_over(identity.user(), bytes, || finished(&status, id, prefer)).await);
            }
        }
        Ok(accepted(id, name, prefer))
    }

    /// `Idempotency-Key`, if the client sends one.
    fn idempotency_key(&self) -> Result<Option<String>, Problem> {
        let Some(key) = self.header("idempotency-key") else { return Ok(None) };
        let fits = key.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if key.is_empty() || key.len() > KEY_BYTES_MAX || !fits {
            let message = format!("`Idempotency-Key` must have 1 to {KEY_BYTES_MAX} visible ASCII characters");
            let error = FieldError::new("Idempotency-Key", FieldReason::NotAllowed, message);
            return Err(RequestError::Invalid(vec![error]).into());
        }
        Ok(Some(key))
    }

    /// Whether an execution is to begin, where requests with the same key begin one together. Which one is written down before
    /// it begins, so that a crash in between leaves nothing that could begin twice.
    async fn begin(
        &self,
        pipelines: &'static Pipelines,
        name: &str,
        key: &str,
        input: &Json,
        identity: &Identity,
    ) -> Result<StartDecision, Problem> {
        let place = format!("start:{}", digest::of(&[identity.user().as_bytes(), name.as_bytes(), key.as_bytes()]));
        let print = digest::of(&[input.as_str().as_bytes()]);
        let end = Deadline::after(clock::now(), BEGUN_MS);
        loop {
            if let KeyRecord::Begun(id) = known(pipelines, &place, &print).await? {
                return Ok(StartDecision::Begun(id));
            }
            let acquired = lease::acquire_for_request(place.clone(), BEGIN_LEASE_MS).await;
            if let Ok(lease) = acquired.map_err(store::problem)? {
                let begin = begin_under(pipelines, &place, &print, &lease, identity).await;
                if let Ok(StartDecision::New(New { id, .. })) = begin {
                    return Ok(StartDecision::New(New { id, lease: Some(lease) }));
                }
                lease.release().await;
                return begin;
            }
            let now = clock::now();
            if end.is_past(now) {
                let detail = "another request with this `Idempotency-Key` is being answered";
                return Err(Problem::refused(409, "idempotency_key_in_use", "The key is in use", detail, Some(1000)));
            }
            Deadline::after(now, LOOK_MS).passed().await;
        }
    }

    /// How far an execution is, if this user may do something with it. Another's and a missing one are answered alike, after
    /// the same questions to the store.
    async fn status(
        &self,
        pipelines: &'static Pipelines,
        id: &str,
        identity: &Identity,
        action: Action,
    ) -> Result<Status, Problem> {
        let channel = channel(id)?;
        let may = |owner: &str| identity.authorize(action, &channel, Some(owner)).is_ok();
        if let Some(live) = pipelines.find(id).filter(|live| may(&live.owner)) {
            return Ok(live.execution.borrow().status(clock::now().monotonic_ns));
        }
        for place in [ExecutionKey::Going, ExecutionKey::Ended] {
            let kept = persistence::get(place, id).await.map_err(|failure| {
                eprintln!("warn: {id} is asked for: {}", store::reason(&failure));
                store::problem(failure)
            })?;
            if let Some(kept) = kept.filter(|kept| may(&kept.owner)) {
                let status = resume::status(pipelines, kept);
                return status.ok_or_else(|| Problem::internal("what is kept of the execution is damaged"));
            }
        }
        Err(Problem::not_found(&self.path))
    }

    async fn cancel(
        &self,
        pipelines: &'static Pipelines,
        id: &str,
        identity: &Identity,
    ) -> Result<BufferedResponse, Problem> {
        let channel = channel(id)?;
        let may = |live: &Rc<RunningExecution>| identity.authorize(Action::Cancel, &channel, Some(&live.owner)).is_ok();
        let over = || {
            let detail = "the execution is over, or what it did is being undone";
            Err(Problem::refused(409, "execution_over", "The execution is over", detail, None))
        };
        let live = match pipelines.find(id).filter(may) {
            Some(live) => live,
            None => {
                let status = self.status(pipelines, id, identity, Action::Cancel).await?;
                if is_over(&status) {
                    return over();
                }
                match resume::open(pipelines, id).await.map_err(store::problem)? {
                    OpenResult::RunningExecution(live) => live,
                    OpenResult::Elsewhere(remaining_ms) => return Err(store::owned_elsewhere(remaining_ms)),
                    OpenResult::Opening => {
                        let detail = "the execution is being resumed after a restart";
                        return Err(Problem::refused(
                            503,
                            "execution_resuming",
                            "Not yet",
                            detail,
                            Some(BUSY_RETRY_MS),
                        ));
                    }
                    OpenResult::Gone => return over(),
                }
            }
        };
        if !live.cancel() {
            return over();
        }
        // It is stored shortly after.
        Deadline::after(clock::now(), CANCEL_MS).bound(live.clone().ended()).await;
        if live.is_lost() {
            return Err(store::owned_elsewhere(u64::from(BUSY_RETRY_MS)));
        }
        let status = live.execution.borrow().status(clock::now().monotonic_ns);
        Ok(BufferedResponse::json(execution::status_json(&status).into_bytes()))
    }
}

impl Pipelines {
    /// Refuses an input that is too large.
    pub(super) fn check_input(&self, input: &Json) -> Result<(), Problem> {
        let bytes_max = self.config.input_bytes_max;
        if input.bytes() <= bytes_max {
            return Ok(());
        }
        let detail = format!("the input has {} bytes, and may have {bytes_max}", input.bytes());
        Err(Problem::refused(413, "input_too_large", "The input is too large", detail, None))
    }

    /// Takes a permit for an unfinished execution.
    pub(super) fn reserve(&'static self, user: &str) -> Result<Starting, Problem> {
        let live = self.live.borrow();
        let full = |status, code, detail: &str| {
            Err(Problem::refused(status, code, "Too many executions", detail, Some(BUSY_RETRY_MS)))
        };
        if self.is_full() {
            return full(503, "executions_full", "this server has all the executions that it may have");
        }
        let starting = self.starting.borrow().of(Some(user));
        let own = starting + live.values().filter(|live| live.owner == user).count();
        // Where users are not identified, all are one user, whose share is the whole.
        if self.settings.auth.required && own >= self.config.user_executions_max {
            return full(429, "too_many_executions", "you have all the executions that you may have");
        }
        self.starting.borrow_mut().add(Some(user), 1);
        Ok(Starting { pipelines: self, user: user.to_owned() })
    }
}

/// What is written down of an `Idempotency-Key`.
enum KeyRecord {
    Nothing,
    /// The execution with this id was chosen and not started yet.
    Chosen(String),
    Begun(String),
}

async fn known(pipelines: &'static Pipelines, place: &str, print: &str) -> Result<KeyRecord, Problem> {
    let known = state::get(place.to_owned()).await.map_err(store::problem)?;
    let known = known.and_then(|value| String::from_utf8(value).ok());
    let Some((id, other)) = known.as_deref().and_then(|value| value.split_once(' ')) else {
        return Ok(KeyRecord::Nothing);
    };
    if other != print {
        let detail = "this `Idempotency-Key` was sent with another input";
        return Err(Problem::refused(422, "idempotency_key_reused", "The key was used", detail, None));
    }
    let id = id.to_owned();
    Ok(if exists(pipelines, &id).await? { KeyRecord::Begun(id) } else { KeyRecord::Chosen(id) })
}

/// Records which execution is to start, where no other request has started it before the lease was acquired.
async fn begin_under(
    pipelines: &'static Pipelines,
    place: &str,
    print: &str,
    lease: &RequestLease,
    identity: &Identity,
) -> Result<StartDecision, Problem> {
    let id = match known(pipelines, place, print).await? {
        KeyRecord::Begun(id) => return Ok(StartDecision::Begun(id)),
        KeyRecord::Chosen(id) => id,
        KeyRecord::Nothing => execution_id::from_random(request_id::random()),
    };
    let (value, ttl_ms) = (format!("{id} {print}").into_bytes(), pipelines.config.ttl_ms);
    let share = pipelines.settings.auth.required.then(|| identity.user().to_owned());
    let put = state::put(place.to_owned(), value, Some(ttl_ms), Some(lease.fence()), share).await;
    put.map_err(store::problem)?;
    Ok(StartDecision::New(New { id, lease: None }))
}

/// Begins an execution: it is stored before it runs.
pub(super) async fn new_live(
    pipelines: &'static Pipelines,
    definition: Arc<Definition>,
    id: &str,
    input: Json,
    identity: &Identity,
) -> Result<Rc<RunningExecution>, Problem> {
    let now = clock::now();
    let execution = Execution::new(definition, id.to_owned(), input, pipelines.limits(), request_id::seed(), now);
    let execution = execution.map_err(|error: ReportError| Problem::internal(&error.to_string()))?;
    // The scan for executions without an owner must not find this one before it runs.
    let _opening = pipelines.open(id);
    let lease = match lease::acquire(ExecutionKey::Going.key(id)).await.map_err(store::problem)? {
        Ok(lease) => lease,
        Err(remaining_ms) => return Err(store::owned_elsewhere(remaining_ms)),
    };
    let live = RunningExecution::new(execution, identity.user().to_owned(), Some(lease));
    let checkpoint = live.execution.borrow_mut().poll_checkpoint(now);
    let checkpoint = checkpoint.ok_or_else(|| Problem::internal("a new execution has no checkpoint"))?;
    let kept = async {
        if Access::current()?.required() {
            persistence::own(&live).await.map_err(store::problem)?;
        }
        persistence::try_save(pipelines, &live, &checkpoint).await.map_err(store::problem)
    };
    if let Err(problem) = kept.await {
        live.release().await;
        return Err(problem);
    }
    live.execution.borrow_mut().handle_checkpoint_saved(checkpoint.number);
    live.checkpoint.replace(Some(checkpoint));
    Ok(pipelines.go(live))
}

/// A permit for an execution that is starting, returned when it is dropped.
pub(super) struct Starting {
    pipelines: &'static Pipelines,
    user: String,
}

impl Drop for Starting {
    fn drop(&mut self) {
        self.pipelines.starting.borrow_mut().remove(Some(&self.user), 1);
    }
}

/// It has ended, one way or the other.
fn is_over(status: &Status) -> bool {
    status.output.is_some() || status.failure.is_some()
}

/// The channel of an execution; with the name of a pipeline, the scope that starting it requires.
fn channel(id: &str) -> Result<Channel, Problem> {
    Channel::new(ChannelKind::Pipeline, id).map_err(|_| Problem::internal("a name that no channel has"))
}

/// Whether there is such an execution, of any user.
async fn exists(pipelines: &Pipelines, id: &str) -> Result<bool, Problem> {
    Ok(pipelines.find(id).is_some()
        || persistence::get(ExecutionKey::Going, id).await.map_err(store::problem)?.is_some()
        || persistence::get(ExecutionKey::Ended, id).await.map_err(store::problem)?.is_some())
}

/// The executions that a user may see, the newest first: the user's own in the store, whichever instance has them, and those of this
/// instance.
async fn list(pipelines: &Pipelines, identity: &Identity, query: &ListQuery) -> Result<Vec<ExecutionSummary>, Failure> {
    let may = |id: &str, owner: &str| {
        channel(id).is_ok_and(|channel| identity.authorize(Action::Read, &channel, Some(owner)).is_ok())
    };
    let own = listing::of_user(identity.user(), list_query::SCANNED_MAX).await?;
    let own = own.into_iter().filter(|listed| may(&listed.execution_id, identity.user()));
    let mut all: BTreeMap<Arc<str>, ExecutionSummary> =
        own.map(|listed| (listed.execution_id.clone(), listed)).collect();
    let mut add = |listed: ExecutionSummary| drop(all.insert(listed.execution_id.clone(), listed));
    for (_, listed) in pipelines.ended.borrow().iter().filter(|(owner, listed)| may(&listed.execution_id, owner)) {
        add(listed.clone());
    }
    let now_ns = clock::now().monotonic_ns;
    for (_, live) in pipelines.live.borrow().iter().filter(|(id, live)| may(id, &live.owner)) {
        let status = live.execution.borrow().status(now_ns);
        add(ExecutionSummary::from(status));
    }
    let mut all: Vec<ExecutionSummary> = all.into_values().collect();
    all.sort_by_key(|listed| std::cmp::Reverse(listed.began_unix_ns));
    Ok(query.select(all))
}

/// 202: it runs.
fn accepted(id: &str, name: &str, prefer: Prefer) -> BufferedResponse {
    let reply = BufferedResponse::error(202, execution::accepted_json(id, name).into_bytes())
        .with("location", execution::location(id));
    match prefer.respond_async && prefer.wait.is_none() {
        true => reply.with("preference-applied", "respond-async"),
        false => reply,
    }
}

/// 200: it has ended while the client waited.
fn finished(status: &Status, id: &str, prefer: Prefer) -> BufferedResponse {
    let reply =
        BufferedResponse::json(execution::status_json(status).into_bytes()).with("location", execution::location(id));
    match prefer.applied() {
        Some(applied) => reply.with("preference-applied", applied),
        None => reply,
    }
}

//! The paths of pipelines and executions.

use std::{collections::BTreeMap, rc::Rc, sync::Arc};

use spin_sdk::wasip3::http::types;
use weir_auth::{digest, identity::Identity, refusal, scope::Action};
use weir_codec::{
    channels::route::{Channel, ChannelKind},
    http::{prefer::Prefer, problem::Problem},
    json::field::{FieldError, FieldReason, RequestError},
    pipelines::{
        definition,
        execution::{self, ExecutionSummary},
        execution_id,
        list_query::{self, ListQuery},
        route::PipelineRoute,
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
/// The lease of an `Idempotency-Key`, in milliseconds: the longest that a request may take to start its execution
/// before another request with the same key may start it. A request that fails to start it releases the lease at once.
const BEGIN_LEASE_MS: u64 = 10_000;
/// How long a request waits for another one with the same `Idempotency-Key`, and the interval of its checks, in
/// milliseconds.
const KEY_WAIT_MS: u64 = 5000;
const KEY_POLL_MS: u64 = 50;
/// The longest that the response to a cancel waits for the end of the execution, in milliseconds.
const CANCEL_MS: u64 = 5000;
/// `Retry-After` where the maximum number of executions is reached, in milliseconds.
const BUSY_RETRY_MS: u32 = 1000;

/// Whether a request with an `Idempotency-Key` starts an execution.
enum StartDecision {
    /// It starts this execution.
    New(NewExecution),
    /// The execution with this id was started by an earlier request.
    Existing(String),
}

/// The id of an execution to start, and the lease that keeps other requests with the same `Idempotency-Key` from
/// starting another.
struct NewExecution {
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

    /// 404 with the most similar names among the pipelines that the user may start. An unknown pipeline and one that
    /// the user may not start get the same response.
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
        let prefer = self.prefer();
        let key = self.idempotency_key()?;
        let body = self.json(body, settings).await?;
        let input = turns::read_json(identity.user(), &body).await.map_err(RequestError::from)?;
        pipelines.check_input(&input)?;
        pipelines.restoration.counted().await?;
        let _permit = pipelines.reserve(identity.user())?;
        let NewExecution { id, lease } = match key {
            None => NewExecution { id: execution_id::from_random(request_id::random()), lease: None },
            Some(key) => match self.claim_key(pipelines, name, &key, &input, identity).await? {
                StartDecision::New(new) => new,
                StartDecision::Existing(id) => {
                    return self.existing_response(pipelines, &id, name, prefer, identity).await;
                }
            },
        };
        let running = start_execution(pipelines, definition, &id, input, identity).await;
        if let Some(lease) = lease {
            lease.release().await;
        }
        self.running_response(running?, &id, name, prefer).await
    }

    /// The response for a running execution: its result, if the client waits and the execution ends in time, else 202.
    async fn running_response(
        &self,
        running: Rc<RunningExecution>,
        id: &str,
        name: &str,
        prefer: Prefer,
    ) -> Result<BufferedResponse, Problem> {
        let timeout_ms = Settings::current().map_err(Problem::internal)?.request_timeout_ms;
        if let Some(wait_ms) = prefer.wait_ms(timeout_ms) {
            let end = Deadline::after(clock::now(), wait_ms).earlier(Deadline::after(self.began, timeout_ms));
            // After a takeover, only the other instance knows the end.
            if end.bound(running.clone().ended()).await.is_some() && !running.is_lost() {
                let status = running.execution.borrow().status(clock::monotonic_ns());
                let bytes = status.output.as_ref().map_or(0, Json::bytes);
                return Ok(turns::run_over(&running.owner, bytes, || finished_response(&status, id, prefer)).await);
            }
        }
        Ok(accepted_response(id, name, prefer))
    }

    /// The response for an execution that an earlier request with the same key started.
    async fn existing_response(
        &self,
        pipelines: &'static Pipelines,
        id: &str,
        name: &str,
        prefer: Prefer,
        identity: &Identity,
    ) -> Result<BufferedResponse, Problem> {
        if let Some(running) = pipelines.find(id) {
            return self.running_response(running, id, name, prefer).await;
        }
        if prefer.wait.is_some() {
            let status = self.status(pipelines, id, identity, Action::Read).await?;
            if is_over(&status) {
                let bytes = status.output.as_ref().map_or(0, Json::bytes);
                return Ok(turns::run_over(identity.user(), bytes, || finished_response(&status, id, prefer)).await);
            }
        }
        Ok(accepted_response(id, name, prefer))
    }

    /// The `Idempotency-Key` of the request, if it has one.
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

    /// Decides whether this request starts an execution: requests with the same key start one together. Its id is
    /// stored before it starts, so that after a crash in between a retry starts the same execution.
    async fn claim_key(
        &self,
        pipelines: &'static Pipelines,
        name: &str,
        key: &str,
        input: &Json,
        identity: &Identity,
    ) -> Result<StartDecision, Problem> {
        let record_key =
            format!("start:{}", digest::of(&[identity.user().as_bytes(), name.as_bytes(), key.as_bytes()]));
        let mut slices = turns::Slices::begin_over(identity.user(), input.bytes()).await;
        let input_digest = digest::of_in_slices(input.as_str().as_bytes(), async || slices.pause().await).await;
        drop(slices);
        let end = Deadline::after(clock::now(), KEY_WAIT_MS);
        loop {
            if let KeyRecord::Started(id) = read_key(pipelines, &record_key, &input_digest).await? {
                return Ok(StartDecision::Existing(id));
            }
            let acquired = lease::acquire_for_request(record_key.clone(), BEGIN_LEASE_MS).await;
            if let Ok(lease) = acquired.map_err(store::problem)? {
                let decision = claim_key_under_lease(pipelines, &record_key, &input_digest, &lease, identity).await;
                if let Ok(StartDecision::New(NewExecution { id, .. })) = decision {
                    return Ok(StartDecision::New(NewExecution { id, lease: Some(lease) }));
                }
                lease.release().await;
                return decision;
            }
            let now = clock::now();
            if end.is_past(now) {
                let detail = "another request with this `Idempotency-Key` is in progress";
                return Err(Problem::refused(409, "idempotency_key_in_use", "The key is in use", detail, Some(1000)));
            }
            Deadline::after(now, KEY_POLL_MS).passed().await;
        }
    }

    /// The status of an execution, if this user may perform `action` on it. One of another user and a missing one get
    /// the same response, after the same reads of the store.
    async fn status(
        &self,
        pipelines: &'static Pipelines,
        id: &str,
        identity: &Identity,
        action: Action,
    ) -> Result<Status, Problem> {
        let channel = channel(id)?;
        let may = |owner: &str| identity.authorize(action, &channel, Some(owner)).is_ok();
        if let Some(running) = pipelines.find(id).filter(|running| may(&running.owner)) {
            return Ok(running.execution.borrow().status(clock::monotonic_ns()));
        }
        for key_kind in [ExecutionKey::Running, ExecutionKey::Ended] {
            let stored = persistence::get(key_kind, id).await.map_err(|failure| {
                eprintln!("warn: the status of {id} cannot be read: {}", store::reason(&failure));
                store::problem(failure)
            })?;
            if let Some(stored) = stored.filter(|stored| may(&stored.owner)) {
                let status = resume::status(pipelines, stored);
                return status.ok_or_else(|| Problem::internal("the stored state of the execution is damaged"));
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
        let may =
            |running: &Rc<RunningExecution>| identity.authorize(Action::Cancel, &channel, Some(&running.owner)).is_ok();
        let over = || {
            let detail = "the execution has ended, or its compensations are running";
            Err(Problem::refused(409, "execution_over", "The execution is over", detail, None))
        };
        let running = match pipelines.find(id).filter(may) {
            Some(running) => running,
            None => {
                let status = self.status(pipelines, id, identity, Action::Cancel).await?;
                if is_over(&status) {
                    return over();
                }
                match resume::open(pipelines, id).await.map_err(store::problem)? {
                    OpenResult::Running(running) => running,
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
        if !running.cancel() {
            return over();
        }
        // The end is stored shortly after the cancellation.
        Deadline::after(clock::now(), CANCEL_MS).bound(running.clone().ended()).await;
        if running.is_lost() {
            return Err(store::owned_elsewhere(u64::from(BUSY_RETRY_MS)));
        }
        let status = running.execution.borrow().status(clock::monotonic_ns());
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

    /// Takes a permit for an execution of a user that is about to start.
    pub(super) fn reserve(&'static self, user: &str) -> Result<StartPermit, Problem> {
        let running = self.running.borrow();
        let full = |status, code, detail: &str| {
            Err(Problem::refused(status, code, "Too many executions", detail, Some(BUSY_RETRY_MS)))
        };
        if self.is_full() {
            return full(
                503,
                "executions_full",
                "this server runs as many executions as it may (pipelines.executions_max)",
            );
        }
        let starting = self.starting.borrow().of(Some(user));
        let own = starting + running.values().filter(|running| running.owner == user).count();
        // Without authentication all clients are the same user, who has the share of all.
        if self.settings.auth.required && own >= self.config.user_executions_max {
            return full(
                429,
                "too_many_executions",
                "you have as many executions as one user may have (pipelines.user_executions_max)",
            );
        }
        self.starting.borrow_mut().add(Some(user), 1);
        Ok(StartPermit { pipelines: self, user: user.to_owned() })
    }
}

/// The stored record of an `Idempotency-Key`.
enum KeyRecord {
    /// There is none.
    Absent,
    /// The execution with this id was chosen and has not started.
    Chosen(String),
    /// The execution with this id was started.
    Started(String),
}

async fn read_key(pipelines: &'static Pipelines, record_key: &str, input_digest: &str) -> Result<KeyRecord, Problem> {
    let value = state::get(record_key.to_owned()).await.map_err(store::problem)?;
    let value = value.and_then(|value| String::from_utf8(value).ok());
    let Some((id, other)) = value.as_deref().and_then(|value| value.split_once(' ')) else {
        return Ok(KeyRecord::Absent);
    };
    if other != input_digest {
        let detail = "this `Idempotency-Key` was sent with another input";
        return Err(Problem::refused(422, "idempotency_key_reused", "The key was used", detail, None));
    }
    let id = id.to_owned();
    Ok(if exists(pipelines, &id).await? { KeyRecord::Started(id) } else { KeyRecord::Chosen(id) })
}

/// Stores the id of the execution to start, unless another request started one before the lease was acquired.
async fn claim_key_under_lease(
    pipelines: &'static Pipelines,
    record_key: &str,
    input_digest: &str,
    lease: &RequestLease,
    identity: &Identity,
) -> Result<StartDecision, Problem> {
    let id = match read_key(pipelines, record_key, input_digest).await? {
        KeyRecord::Started(id) => return Ok(StartDecision::Existing(id)),
        KeyRecord::Chosen(id) => id,
        KeyRecord::Absent => execution_id::from_random(request_id::random()),
    };
    let (value, ttl_ms) = (format!("{id} {input_digest}").into_bytes(), pipelines.config.ttl_ms);
    let share = pipelines.settings.auth.required.then(|| identity.user().to_owned());
    let put = state::put(record_key.to_owned(), value, Some(ttl_ms), Some(lease.fence()), share).await;
    put.map_err(store::problem)?;
    Ok(StartDecision::New(NewExecution { id, lease: None }))
}

/// Starts an execution. Its first checkpoint is stored before it runs.
pub(super) async fn start_execution(
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
    let lease = match lease::acquire(ExecutionKey::Running.key(id)).await.map_err(store::problem)? {
        Ok(lease) => lease,
        Err(remaining_ms) => return Err(store::owned_elsewhere(remaining_ms)),
    };
    let running = RunningExecution::new(execution, identity.user().to_owned(), Some(lease));
    let checkpoint = running.execution.borrow_mut().poll_checkpoint(now);
    let checkpoint = checkpoint.ok_or_else(|| Problem::internal("a new execution has no checkpoint"))?;
    let save = async {
        if Access::current()?.required() {
            persistence::assign_channel_owner(&running).await.map_err(store::problem)?;
        }
        persistence::try_save(pipelines, &running, &checkpoint).await.map_err(store::problem)
    };
    if let Err(problem) = save.await {
        running.release().await;
        return Err(problem);
    }
    running.execution.borrow_mut().handle_checkpoint_saved(checkpoint.number);
    running.checkpoint.replace(Some(checkpoint));
    Ok(pipelines.spawn_driver(running))
}

/// A permit for an execution that is starting, returned when it is dropped.
pub(super) struct StartPermit {
    pipelines: &'static Pipelines,
    user: String,
}

impl Drop for StartPermit {
    fn drop(&mut self) {
        self.pipelines.starting.borrow_mut().remove(Some(&self.user), 1);
    }
}

/// Whether the execution has ended, with or without success.
fn is_over(status: &Status) -> bool {
    status.output.is_some() || status.failure.is_some()
}

/// The channel of an execution. For the name of a pipeline, the channel whose scope permits starting it.
fn channel(id: &str) -> Result<Channel, Problem> {
    Channel::new(ChannelKind::Pipeline, id).map_err(|_| Problem::internal("the name is not valid as a channel"))
}

/// Whether an execution of this id exists, of any user.
async fn exists(pipelines: &Pipelines, id: &str) -> Result<bool, Problem> {
    Ok(pipelines.find(id).is_some()
        || persistence::get(ExecutionKey::Running, id).await.map_err(store::problem)?.is_some()
        || persistence::get(ExecutionKey::Ended, id).await.map_err(store::problem)?.is_some())
}

/// The executions that a user may see, newest first: the user's own executions in the store, of all instances, and the
/// visible ones of this instance.
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
    let now_ns = clock::monotonic_ns();
    for (_, running) in pipelines.running.borrow().iter().filter(|(id, running)| may(id, &running.owner)) {
        let status = running.execution.borrow().status(now_ns);
        add(ExecutionSummary::from(status));
    }
    let mut all: Vec<ExecutionSummary> = all.into_values().collect();
    all.sort_by_key(|listed| std::cmp::Reverse(listed.began_unix_ns));
    Ok(query.select(all))
}

/// 202: the execution runs.
fn accepted_response(id: &str, name: &str, prefer: Prefer) -> BufferedResponse {
    let reply = BufferedResponse::error(202, execution::accepted_json(id, name).into_bytes())
        .with("location", execution::location(id));
    match prefer.respond_async && prefer.wait.is_none() {
        true => reply.with("preference-applied", "respond-async"),
        false => reply,
    }
}

/// 200: the execution ended while the client waited.
fn finished_response(status: &Status, id: &str, prefer: Prefer) -> BufferedResponse {
    let reply =
        BufferedResponse::json(execution::status_json(status).into_bytes()).with("location", execution::location(id));
    match prefer.applied() {
        Some(applied) => reply.with("preference-applied", applied),
        None => reply,
    }
}

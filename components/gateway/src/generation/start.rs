//! The start of a generation, up to its first event.

use std::rc::Rc;

use spin_sdk::wasip3::spawn;
use weir_auth::identity::Identity;
use weir_codec::{
    channels::route::{Channel, ChannelKind},
    generation::{
        ApiRequest,
        dialect::Dialect,
        event::{GenerationEvent, Started},
        request::GenerateRequest,
    },
    http::problem::Problem,
};
use weir_core::time::Now;

use super::{
    client::{self, Computation, Progress},
    registry::{Admission, Registry},
    running::RunningGeneration,
};
use crate::{
    http::request_id,
    platform::{bindings::weir::stream::generate_types::Begun, clock, lease, settings::Settings, store},
};

const NS_PER_S: u64 = 1_000_000_000;

/// A generation whose prompt is being computed.
pub(super) struct StartingGeneration {
    admission: Admission,
    id: String,
    model: String,
    choices: u32,
    dialect: Dialect,
    computation: Computation,
    began: Now,
}

impl StartingGeneration {
    /// Starts a generation.
    pub(super) async fn start(
        request: ApiRequest,
        identity: &Identity,
        deadline_ms: Option<u32>,
        began: Now,
    ) -> Result<Self, Problem> {
        let id = format!("{:032x}", u128::from_be_bytes(request_id::random()));
        let admission = Registry::current().admit(&id, identity.user())?;
        let ApiRequest { request, detach, dialect, .. } = request;
        let GenerateRequest { model, choices, .. } = &request;
        let (model, choices) = (client::choose_model(model.clone(), began).await?, *choices);
        let user = Settings::current().is_ok_and(|settings| settings.auth.required).then(|| identity.user());
        let computation = Computation::start_for(user, request, model.clone(), deadline_ms, detach).await;
        Ok(Self { admission, id, model, choices, dialect, computation, began })
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Waits until the prompt is computed, appends the first event, and spawns the task that runs the generation.
    pub(super) async fn run(mut self) -> Result<Rc<RunningGeneration>, Problem> {
        let channel = Channel::new(ChannelKind::Generation, &self.id);
        let channel = channel.map_err(|error| Problem::internal(&error.to_string()))?;
        let begun = match self.computation.wait_begun().await {
            Ok(begun) => begun,
            Err(failure) => return Err(client::problem(failure, self.began).await),
        };
        // Acquired only now: nothing renews the lease while the prompt is computed.
        let lease = match lease::acquire(channel.to_string()).await.map_err(store::problem)? {
            Ok(lease) => lease,
            Err(remaining_ms) => return Err(store::owned_elsewhere(remaining_ms)),
        };
        let running = RunningGeneration::new(self.id.clone(), self.admission.user.clone(), channel, lease);
        if let Err(problem) = running.open(self.started(&begun)).await {
            running.close().await;
            return Err(problem);
        }
        let running = Rc::new(running);
        Registry::current().insert(running.clone());
        let progress = Progress::new(&begun, self.choices);
        let (driven, computation) = (running.clone(), self.computation);
        spawn(async move {
            driven.drive(computation, progress).await;
            Registry::current().remove(&driven.id);
        });
        Ok(running)
    }

    fn started(&self, begun: &Begun) -> GenerationEvent {
        GenerationEvent::Started(Started {
            generation_id: self.id.clone(),
            model: self.model.clone(),
            created: clock::now().unix_ns / NS_PER_S,
            prompt_tokens: begun.prompt_tokens,
            cached_tokens: begun.cached_tokens,
            seed: begun.seed,
            choices: self.choices,
            dialect: self.dialect.clone(),
        })
    }
}

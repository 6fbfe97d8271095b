//! Uploads: a file becomes the input of an execution.

use spin_sdk::wasip3::http::types;
use weir_auth::identity::Identity;
use weir_codec::{
    channels::publish::user_channel,
    http::problem::Problem,
    json::field::RequestError,
    pipelines::{
        execution, execution_id,
        upload::{self, UploadQuery},
    },
};

use super::{
    Pipelines,
    routes::start_execution,
    upload_progress::{KINDS, channel},
};
use crate::{
    auth::Access,
    channels::ownership,
    http::{request::RequestContext, request_id, response::BufferedResponse},
    platform::{settings::Settings, turns},
};

impl RequestContext<'_> {
    /// Starts an execution with a file as its input.
    pub(super) async fn upload(
        &self,
        pipelines: &'static Pipelines,
        body: types::Request,
        identity: &Identity,
    ) -> Result<BufferedResponse, Problem> {
        let settings = Settings::current().map_err(Problem::internal)?;
        let UploadQuery { pipeline, name } = UploadQuery::read(self.query)?;
        let pipeline = pipeline.as_deref().unwrap_or(upload::PIPELINE);
        let definition = self.definition(pipelines, pipeline, identity)?;
        let access = Access::current()?;
        access.check_publish_rate(identity, self.began)?;
        self.encoding()?;
        let content_type = self.header("content-type");
        let body = self.whole(body, settings).await?;
        let read = || {
            let file = upload::read(content_type.as_deref(), &body)?;
            Ok::<_, Problem>(upload::input(&file, name.as_deref()))
        };
        let input = turns::run_over(identity.user(), body.len(), read).await?;
        let input = turns::read_json(identity.user(), input.as_bytes()).await.map_err(RequestError::from)?;
        pipelines.check_input(&input)?;
        pipelines.restoration.counted().await?;
        let _permit = pipelines.reserve(identity.user())?;
        let id = execution_id::from_random(request_id::random());
        if access.required()
            && let Some(user) = user_channel(identity.user())
        {
            for kind in KINDS {
                ownership::assign(&channel(kind, &id)?, &user, ownership::PastEvents::Owned).await?;
            }
        }
        start_execution(pipelines, definition, &id, input, identity).await?;
        let reply = BufferedResponse::error(202, upload::accepted_json(&id, pipeline).into_bytes());
        Ok(reply.with("location", execution::location(&id)))
    }
}

//! `/v1/classify`, `/v1/tokens` and `/v1/embed`.

use spin_sdk::wasip3::{http::types, spawn};
use weir_codec::{
    http::{
        accept::{self, ResponseMode},
        content_type,
        framing::Framing,
        problem::Problem,
    },
    inference::{output, query::Query, request::TaskRequest, task::Task},
};

use super::{
    batch,
    requests::Plan,
    stream::{self, TextSource},
};
use crate::{
    http::{
        request::RequestContext,
        response::{BufferedResponse, RouteResponse},
    },
    platform::settings::Settings,
};

impl RequestContext<'_> {
    /// A task for each of several texts: in a JSON body or on lines, with one response or as a stream.
    pub(crate) async fn task(&self, task: Task, body: types::Request) -> Result<RouteResponse, Problem> {
        const FORMS: [&str; 3] = ["application/json", "application/x-ndjson", "text/event-stream"];
        let settings = Settings::current().map_err(Problem::internal)?;
        let (began, accepted) = (self.began, self.header("accept"));
        let query = Query::read(self.query, task)?;
        if content_type::is_ndjson(self.header("content-type").as_deref()) {
            let framing = accept::framing(accepted.as_deref()).ok_or_else(|| Problem::not_acceptable(&FORMS[1..]))?;
            self.encoding()?;
            let plan = Plan::new(task, query.model, query.parameters, settings).preferring(self.prefer());
            let source = TextSource::Lines(self.body_reader(body, settings).await?);
            return self.stream_items(source, plan, framing, settings);
        }
        let form = accept::response_mode(accepted.as_deref()).ok_or_else(|| Problem::not_acceptable(&FORMS))?;
        let body = self.json(body, settings).await.map_err(|problem| match problem.code {
            "unsupported_media_type" => {
                Problem::unsupported_media_type(self.header("content-type").as_deref(), &FORMS[..2])
            }
            _ => problem,
        })?;
        let TaskRequest { inputs, model, parameters } = TaskRequest::from_json(&body, task, query)?;
        let plan = Plan::new(task, model, parameters, settings).within(settings, began);
        match form {
            ResponseMode::Stream(framing) => {
                self.stream_items(TextSource::Inputs(inputs), plan.preferring(self.prefer()), framing, settings)
            }
            ResponseMode::Json => {
                let plan = plan.or_fail();
                let outputs = batch::whole(&plan, inputs, settings, began).await?;
                Ok(RouteResponse::Whole(BufferedResponse::json(output::answer_json(&outputs, &plan.model))))
            }
        }
    }

    /// Answers with a stream of results.
    fn stream_items(
        &self,
        source: TextSource,
        plan: Plan,
        framing: Framing,
        settings: &'static Settings,
    ) -> Result<RouteResponse, Problem> {
        let (response, client) = self.streaming(framing)?;
        let began = self.began;
        spawn(async move { stream::stream(source, plan, framing, settings, began, client).await });
        Ok(RouteResponse::Streaming(response))
    }
}

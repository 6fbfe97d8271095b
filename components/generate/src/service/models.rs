//! The models of the host, loaded once for all calls of this instance.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::Failure;
use crate::bindings::exports::weir::stream::generate::GenerateModel;
use crate::bindings::weir::stream::lm::{self, Model};
use crate::model::LanguageModel;
use crate::settings::Settings;

/// The models that were opened.
pub(super) struct Models {
    pub(super) settings: Settings,
    open: RefCell<BTreeMap<String, Rc<OpenModel>>>,
}

/// A model with its sequences on the host.
pub(super) struct OpenModel {
    pub(super) host: Model,
    pub(super) language: LanguageModel,
}

impl Default for Models {
    fn default() -> Self {
        Self { settings: Settings::read(|name| std::env::var(name).ok()), open: RefCell::default() }
    }
}

impl Models {
    /// The model of a name, opened on first use.
    pub(super) async fn open(&self, name: &str) -> Result<Rc<OpenModel>, Failure> {
        if let Some(open) = self.open.borrow().get(name).cloned() {
            return Ok(open);
        }
        let host = Model::open(name.to_owned()).await?;
        let language = LanguageModel::new(host.info(), host.tokenizer(), host.chat_template(), &self.settings);
        let language = language.map_err(|reason| Failure::Unavailable(format!("model {name}: {reason}")))?;
        if let Some(Err(reason)) = &language.template {
            eprintln!("model {name}: {reason}");
        }
        // Another call may have opened it meanwhile; all calls share the first.
        let mut all = self.open.borrow_mut();
        Ok(all.entry(name.to_owned()).or_insert_with(|| Rc::new(OpenModel { host, language })).clone())
    }

    /// The models of the host. Opens each of them.
    pub(super) async fn list(&self) -> Vec<GenerateModel> {
        let mut models = Vec::new();
        for info in lm::models().await {
            let opened = self.open(&info.name).await;
            let reason = opened.as_ref().err().map(|failure| match failure {
                Failure::Unavailable(reason) | Failure::Other(reason) => reason.clone(),
                _ => "it cannot be opened".to_owned(),
            });
            let context_tokens_max = opened.ok().map(|open| open.language.info.context_tokens_max);
            models.push(GenerateModel { name: info.name, context_tokens_max, ready: reason.is_none(), reason });
        }
        models
    }
}

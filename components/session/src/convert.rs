//! All conversions from core's types to the records of `weir:stream/session`. Chunks and segments need none, since the
//! bindings use core's.

use std::sync::Arc;

use weir_core::transcripts::{self as core, Event, Final, SummaryKind};

use crate::types::{Annotation, FinalSegment, KeywordMatch, OutputBody, SummaryDue};

/// An event as an output.
pub(crate) fn output(event: Event) -> OutputBody {
    match event {
        Event::Partial(partial) => OutputBody::Partial(partial),
        Event::Final(segment) => OutputBody::Final(final_segment(&segment)),
        Event::Summary(due) => OutputBody::Summary(SummaryDue {
            is_final: due.kind == SummaryKind::Final,
            finals: due.finals,
            keywords: names(&due.keywords),
            context: due.context,
            prompt: due.prompt,
            transcript: due.transcript,
        }),
        Event::Dropped(segment) => OutputBody::Dropped(final_segment(&segment)),
        Event::Expiring { in_ms } => OutputBody::Expiring(in_ms),
        Event::Expired => OutputBody::Expired,
    }
}

fn final_segment(segment: &Final) -> FinalSegment {
    FinalSegment {
        id: segment.id,
        segment: segment.segment.clone(),
        annotation: annotation(&segment.annotation),
        workflow: segment.workflow.name().to_owned(),
    }
}

/// An annotation as a record.
pub fn annotation(annotation: &core::Annotation) -> Annotation {
    let keyword_match = |entry: &core::annotate::KeywordMatch| KeywordMatch {
        risk: (*entry.risk).to_owned(),
        keyword: (*entry.keyword).to_owned(),
    };
    Annotation {
        keywords: names(&annotation.keywords),
        risk_tags: names(&annotation.risk_tags),
        matches: annotation.matches.iter().map(keyword_match).collect(),
        action: annotation.action.as_deref().map(str::to_owned),
        intent: annotation.intent.map(|intent| intent.name().to_owned()),
    }
}

fn names(names: &[Arc<str>]) -> Vec<String> {
    names.iter().map(|name| (**name).to_owned()).collect()
}

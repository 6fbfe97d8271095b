//! All conversions between the records of `weir:stream/session` and the types of core and codec. Chunks and segments
//! need none, since the bindings use core's types.

use weir_codec::{
    http::lines::Line,
    transcripts::{
        input::{Body, Refusal, read_line},
        outbox::EventOutbox,
    },
};
use weir_core::transcripts::{self as core, Event, Intent, SummaryKind, Workflow, annotate::KeywordMatch};

use crate::platform::bindings::weir::stream::session::{self, Input, InputBody, Output, OutputBody};

/// Converts a line to an input. A refused line is an input too, so that the session acknowledges it in order.
pub(crate) fn input(line: &Line<'_>) -> Input {
    let (seq, body) = match read_line(line) {
        Ok(input) => {
            let body = match input.body {
                Body::Chunk(chunk) => InputBody::Chunk(chunk),
                Body::End => InputBody::End,
            };
            (input.seq, body)
        }
        Err(Refusal { code, field, message }) => {
            let field = field.map(String::from);
            (None, InputBody::Refused(session::Refusal { code: code.into(), field, message }))
        }
    };
    Input { line: line.number, seq, body }
}

/// Passes an output to the outbox.
pub(crate) fn hand_over(outbox: &mut EventOutbox, output: Output) {
    let Output { event_id, seq, more, body } = output;
    let event = match body {
        OutputBody::Partial(partial) => Event::Partial(partial),
        OutputBody::Final(segment) => Event::Final(final_segment(segment).into()),
        OutputBody::Summary(due) => Event::Summary(Box::new(core::SummaryDue {
            kind: if due.is_final { SummaryKind::Final } else { SummaryKind::Incremental },
            finals: due.finals,
            context: due.context,
            keywords: due.keywords.into_iter().map(Into::into).collect(),
            prompt: due.prompt,
            transcript: due.transcript,
        })),
        OutputBody::Dropped(segment) => Event::Dropped(final_segment(segment).into()),
        OutputBody::Expiring(in_ms) => Event::Expiring { in_ms },
        OutputBody::Expired => Event::Expired,
        OutputBody::Refused((line, session::Refusal { code, field, message })) => {
            let refusal = Refusal { code: code.into(), field: field.map(Into::into), message };
            return outbox.handle_refusal(line, &refusal);
        }
        OutputBody::Repeated((seq, seq_last)) => return outbox.handle_repeated(seq, seq_last),
        OutputBody::Checkpoint(bytes) => return outbox.handle_checkpoint(bytes),
        // No request for these is made on the streams of this outbox.
        OutputBody::State(_) | OutputBody::Context(_) => return,
    };
    outbox.handle_event(event, event_id, seq, more);
}

fn final_segment(segment: session::FinalSegment) -> core::Final {
    core::Final {
        id: segment.id,
        segment: segment.segment,
        annotation: annotation(segment.annotation),
        workflow: Workflow::from_name(&segment.workflow).unwrap_or(Workflow::General),
    }
}

pub(super) fn annotation(annotation: session::Annotation) -> core::Annotation {
    let session::Annotation { keywords, risk_tags, matches, action, intent } = annotation;
    let keyword_match = |keyword_match: session::KeywordMatch| KeywordMatch {
        risk: keyword_match.risk.into(),
        keyword: keyword_match.keyword.into(),
    };
    core::Annotation {
        keywords: keywords.into_iter().map(Into::into).collect(),
        risk_tags: risk_tags.into_iter().map(Into::into).collect(),
        matches: matches.into_iter().map(keyword_match).collect(),
        action: action.map(Into::into),
        intent: intent.and_then(|name| Intent::from_name(&name)),
    }
}

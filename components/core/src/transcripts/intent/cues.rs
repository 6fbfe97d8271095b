//! The phrases of the intent rules. Words are separated by spaces, phrases by semicolons; a space in a phrase matches
//! any gap within a sentence.

/// The hint that a phrase gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PhraseHint {
    Clarify,
    Decide,
    /// A request, if a verb of [`VERBS`] follows.
    Request,
    Ask,
    /// A question at the beginning of a sentence, if one of [`SUBJECTS`] follows.
    Invert,
    /// A question at the beginning of a sentence, if one of [`AUXILIARIES`] follows within three words.
    Wh,
    Act,
    /// An action that is suggested.
    Suggest,
    /// An action, if a verb follows.
    ActVerb,
    /// An action at the beginning of a sentence, unless an auxiliary follows.
    Imperative,
    Commit,
    /// A promise, if a verb follows.
    CommitVerb,
    Agree,
    /// An agreement, in a short sentence.
    Assent,
    /// No hint; covers words that would otherwise be a cue.
    Nothing,
}

/// Verbs of requests and promises.
pub(super) const VERBS: &str = "add adjust arrange ask assign attach book bring build call cancel change check circulate clean close \
    collect compile complete confirm contact coordinate copy correct create deliver deploy document draft \
    drop email escalate file fill finalize finish fix follow forward gather get give grab handle hand \
    install investigate invite issue join keep log look make measure message migrate move notify open order \
    organize pass pay ping post prepare print process provide publish pull push put raise reach record \
    refund remind remove replace report request resend reset restart return review revise rewrite run \
    schedule send set share ship sign sort start submit switch take talk test track transfer translate turn \
    update upgrade upload verify walk write";

/// Subjects of inverted questions.
pub(super) const SUBJECTS: &str = "i you we they he she it there this that these those the a an any anyone anybody anything someone \
    somebody everyone everybody everything your our my his her their all both customers people";

/// Auxiliaries after "what", "how" and similar words in questions; `isn` is the word before `'t`.
pub(super) const AUXILIARIES: &str = "is are was were am do does did can could will would should shall may might has have had isn aren wasn \
    weren don doesn didn couldn won wouldn shouldn hasn haven s re d";

/// Words after which the beginning of a sentence continues.
pub(super) const FILLERS: &str = "so and but okay ok well um uh hey hi hello sorry yeah yes yep right alright oh now then also just \
    actually basically great sure thanks no or perfect fine cool first next again hmm team everyone guys";

/// Words that can be between "can you" and its verb.
pub(super) const SOFTENERS: &str = "please also just quickly maybe kindly then still definitely personally go";

/// The phrases of each hint.
pub(super) const CUES: &[(PhraseHint, &str)] = &[
    (
        PhraseHint::Clarify,
        "what do you mean; what does that mean; what did you mean; what you mean; do you mean; did you mean; \
         you mean; you meant; what's meant by; can you clarify; could you clarify; please clarify; to clarify; \
         clarify that; clarify what; let me clarify; clarification; clarify; can you explain; could you explain; \
         would you explain; please explain; explain that; explain what; let me explain; let me rephrase; \
         let me repeat; rephrase; can you elaborate; could you elaborate; elaborate on; be more specific; \
         can you repeat; could you repeat; please repeat; repeat that; say that again; say again; come again; \
         pardon; didn't catch; did not catch; didn't get that; didn't hear; missed that; don't follow; \
         not following; don't understand; do not understand; didn't understand; not sure i understand; \
         not sure i follow; make sure i understand; make sure i understood; if i understand; \
         understand correctly; understood correctly; did i understand; in other words; to be clear; \
         just to be clear; so you're saying; are you saying; you're saying; what i meant; what i mean; i meant; \
         i mean to say; that is to say; by that i mean; when you say; when i say; which one do you mean; \
         what exactly; how so; i'm confused; i am confused; a bit confused; confused about; meaning that; \
         lost me; walk me through that; what's the difference; what is the difference; is that the same; \
         is that different; referring to; to put it differently; to put it another way",
    ),
    (
        PhraseHint::Decide,
        "we decided; we've decided; we have decided; i've decided; i have decided; i decided; they decided; \
         they've decided; board decided; team decided; it's decided; it was decided; been decided; \
         that's decided; decided to; decided on; decided that; decided against; decision is; decision was; \
         final decision; made the decision; made a decision; decision made; decision has been; let's go with; \
         we'll go with; we will go with; i'll go with; we're going with; we are going with; i'm going with; \
         going with option; go with option; went with; we settled on; settled on; we've settled; \
         we have settled; it's settled; that's settled; is settled; we chose; we've chosen; we have chosen; \
         chosen to; we picked; we've picked; we opted; opted for; opted to; we agreed to; we've agreed to; \
         we have agreed; we've agreed; we agreed on; we agreed that; agreed to postpone; approved; \
         signed off on; has signed off; moving forward with; moving ahead with; going ahead with; \
         we're going ahead; go ahead with; concluded that; we concluded; the plan is to; consensus is; \
         consensus was; that's final; it's final; resolved to; we voted; vote passed; motion carried; \
         motion passes; motion passed; ruled out; we're dropping; we are dropping; greenlit; green light; \
         stick with; sticking with; let's call it; settle on; rejected; locked in; finalized; finalised; \
         verdict is; made up our minds; made up my mind; made the call; we're not going to; we are not going to; \
         let's do option; selected; it's official",
    ),
    (
        PhraseHint::Request,
        "can you; could you; would you; will you; can someone; could someone; can somebody; can anyone; can we; \
         could we; may i ask you to; would you mind",
    ),
    (PhraseHint::Act, "can i ask you to; could i ask you to; can i get you to"),
    (
        PhraseHint::Ask,
        "how about; what about; what if; any idea; any ideas; any update; any updates; any news; any questions; \
         any thoughts; any chance; i wonder; wondering if; wondering whether; wondering what; wondering how; \
         wondering when; i'd like to know; i would like to know; i want to know; i wanted to know; \
         i wanted to ask; do you know; can you tell me; could you tell me; would you tell me; tell me what; \
         tell me how; tell me why; tell me when; how come; why don't we; why not; is it possible; \
         i have a question; got a question; quick question; my question is; the question is; curious if; \
         curious whether; curious what; curious how; can you give me an idea; can you take; can you make it; \
         could you make it; can you get",
    ),
    (
        PhraseHint::Invert,
        "is; are; was; were; am; does; did; can; could; will; would; should; shall; may; might; has; have; had; \
         isn't; aren't; wasn't; weren't; don't; doesn't; didn't; can't; couldn't; won't; wouldn't; shouldn't; \
         hasn't; haven't; do i; do you; do we; do they; do any; do all",
    ),
    (
        PhraseHint::Ask,
        "do i have; do i need; do we have; do we need; do we want; do we know; do you have; do you need; \
         do you want; do you think; do they have; do you still; do you guys; do you offer; do i get; \
         do they want; do they know; do you see; do you remember",
    ),
    (PhraseHint::Wh, "what; when; where; who; whose; why; how; which"),
    (
        PhraseHint::Act,
        "we need to; you need to; they need to; he needs to; she needs to; needs to; need you to; \
         need someone to; want you to; would like you to; like you to; you have to; we have to; has to be; \
         have to be; we must; you must; must be; make sure; be sure to; don't forget; remember to; action item; \
         action items; to do list; todo; follow up with; take care of; somebody should; someone should; \
         you should; someone has to; next step; next steps; needs doing; need to be; assigned to; is due; \
         are due; due by; due on; deadline; let me know; get back to me; get back to us; keep me posted; \
         keep us posted; you'll need to; should be sent; should be done; by end of day; by the end of; \
         by tomorrow; by monday; by tuesday; by wednesday; by thursday; by friday; by next week; by noon; \
         by eod; is responsible for; are responsible for; is on the hook; is going to own; owns the; \
         i'd like you; task for; your task; is tasked; we've got to; we gotta; you're going to; \
         will be responsible",
    ),
    (
        PhraseHint::ActVerb,
        "please; let's; we ought to; i want us to; i'd like us to; should; he'll; she'll; they'll; you'll; \
         can you; could you; you can",
    ),
    (PhraseHint::Suggest, "we should; we ought to"),
    (
        PhraseHint::Commit,
        "i'll; i will; we'll; we will; i'm going to; i am going to; i'm gonna; we're going to; we are going to; \
         we're gonna; i promise; we promise; i guarantee; we guarantee; you have my word; count on me; \
         count on us; rely on me; leave it with me; leave it to me; leave that with me; leave that to me; \
         consider it done; i'm on it; i am on it; we're on it; let me; i commit; we commit; i'm committed to; \
         we're committed to; committed to; i can do that; i can take that; i can take care; i'd be happy to; \
         i'd be glad to; i would be happy to; happy to take; i've got this; i got this; i've got it; i shall; \
         we shall; my word; i'll make sure; i will make sure; we'll make sure; we will make sure; i own; \
         i'll take care of; i will take care of; i take responsibility; i'll follow up with; \
         i will follow up with; i volunteer; i plan to; i intend to; on my list; i'll let you know; \
         i will let you know; i'll get back to you; on my way; i'll be sure to; i pledge; i swear; right on it; \
         i'll go ahead",
    ),
    (PhraseHint::CommitVerb, "i can; we can; happy to; glad to; i could; i'm happy to; allow me to"),
    (
        PhraseHint::Agree,
        "i agree; i totally agree; i completely agree; i fully agree; i also agree; i absolutely agree; \
         we agree; agree with you; agree with that; agreed; in agreement; sounds good; sounds great; \
         sounds fine; sounds right; sounds reasonable; sounds like a plan; sound good to me; makes sense; \
         make sense to me; makes total sense; makes perfect sense; that works; works for me; works for us; \
         you're right; you are right; you're absolutely right; that's right; that's correct; that's true; \
         that's fair; that is true; that is right; that is correct; absolutely; exactly; definitely; precisely; \
         good idea; great idea; good point; great point; good call; fair enough; fair point; fine by me; \
         fine with me; okay with me; ok with me; good with me; good with that; fine with that; okay with that; \
         happy with that; i'm on board; on board with; no objection; no objections; i second; same here; \
         i think so too; i'm with you; i am with you; couldn't agree more; could not agree more; of course; \
         my thoughts exactly; i support; i'm all for; all for it; that would be great; that would work; \
         i feel the same; i'm in favor; in favor of; that's a plan; i see your point; works well for me; \
         true enough; no problem with that; likewise; indeed; for sure",
    ),
    (
        PhraseHint::Assent,
        "yes; yeah; yep; yup; sure; okay; ok; right; alright; great; perfect; fine; true; correct; certainly; \
         cool; deal; totally; very well; all right; uh huh; mm hmm; aye; excellent; very good",
    ),
    (
        PhraseHint::Nothing,
        "don't agree; do not agree; can't agree; cannot agree; not agree; never agreed; disagree; \
         not sure i agree; wouldn't agree; not exactly; not absolutely; not definitely; not a good idea; \
         doesn't make sense; does not make sense; didn't make sense; not make sense; no decision; \
         haven't decided; have not decided; hasn't decided; not decided; not yet decided; hasn't been decided; \
         not been decided; not approved; hasn't been approved; not been approved; wasn't approved; i won't; \
         we won't; i will not; we will not; i'll not; i'll never; i will never; i'll be honest; \
         i will be honest; i'll admit; i will admit; i'll say; i will say; we'll see; we will see; \
         i'm not going to; i am not going to; you don't need to; you don't have to; don't need to; \
         don't have to; doesn't need to; doesn't have to; didn't need to; didn't have to; not need to; \
         let me think; let me see; let's see; let me tell you; let me put it; let's say; i need to; i have to; \
         make sure that's; i can't; we can't; you can't; i cannot; i should; thank you; thanks; of course not; \
         definitely not; absolutely not; have a good; have a great; have a nice; should have; would have; \
         could have; i'll have to say; you can say; i can see; i can hear; i can tell; i can imagine; \
         take it easy; take a while; i can understand; i understand; as you can see; next to; follow up call; \
         call it a day; right now; keep in mind; make it; get it; got it; start with; look at that; look like; \
         looks like; as of now; set of; used to; i was going to; i'll be there; make sense; let me down; \
         let me go; process is; report says; test results; test environment",
    ),
];

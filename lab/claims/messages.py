"""Messages to a shop, made of phrases: the texts of the new user."""

from __future__ import annotations

MESSAGES: dict[str, tuple[list[str], dict[str, list[str]]]] = {
    "delivery": (
        [
            "my {thing} {late}",
            "where is the {thing} I ordered {when}",
            "the courier {fault} with my {thing}",
            "tracking says delivered but the {thing} never came",
            "can I change the address of the {thing} before it ships",
        ],
        {
            "late": ["has not arrived", "is still on its way", "is late again", "seems lost"],
            "fault": ["never rang", "left it with a stranger", "went to the wrong street"],
        },
    ),
    "payment": (
        [
            "I was charged {times} for the {thing}",
            "my card is declined when I buy the {thing}",
            "the invoice for the {thing} shows the wrong {amount}",
            "when do I get my money for the {thing} back",
            "can I pay for the {thing} {how}",
        ],
        {
            "times": ["twice", "three times", "too much", "again this month"],
            "amount": ["sum", "tax", "currency", "name"],
            "how": ["by transfer", "in instalments", "with a voucher"],
        },
    ),
    "broken": (
        [
            "the {thing} {defect} {when}",
            "{thing} arrived with a {damage}",
            "there is a {damage} on the {thing} I bought {when}",
            "the {thing} worked for a day and then {defect}",
            "how do I get the {thing} repaired, it {defect}",
        ],
        {
            "defect": ["stopped working", "makes a strange noise", "does not switch on", "gets very hot"],
            "damage": ["crack", "dent", "missing screw", "scratched screen"],
        },
    ),
    "account": (
        [
            "I cannot {enter} since {when}",
            "the {reset} mail never arrives",
            "please change the {detail} on my profile",
            "someone else {enter} with my {detail}",
            "how do I delete my account and all my data",
        ],
        {
            "enter": ["log in", "sign in", "open my profile"],
            "reset": ["password reset", "confirmation", "activation"],
            "detail": ["phone number", "user name", "e-mail address", "password"],
        },
    ),
    "praise": (
        [
            "I just want to say that the {thing} is {good}",
            "{good} service, thank you for the {thing}",
            "the {thing} I got {when} is {good}, well done",
            "my family loves the {thing}",
            "five stars for the {thing} and for your team",
        ],
        {"good": ["wonderful", "better than I hoped", "simply great", "worth every cent"]},
    ),
}
COMMON = {
    "thing": ["kettle", "lamp", "headphones", "blender", "tent", "chair", "keyboard", "parcel", "toaster"],
    "when": ["yesterday", "last week", "on Monday", "two days ago", "in March", "this morning"],
}
OPENINGS = ["", "", "", "hello, ", "hi there, ", "good evening. ", "urgent: ", "second message: "]
ENDINGS = ["", "", "", " please help", " thanks", " regards, Kim", "!!", " order 48213", " ??"]
LOREM = ["lorem", "ipsum", "dolor", "sit", "amet", "consectetur", "adipiscing", "elit", "sed", "tempor"]

"""Reasoning questions, such as what could be eaten or what flies, with the categories that answer each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xsam_model.training.scenes.art.vocabulary import group_of, in_group, listed
from xsam_model.training.scenes.scene import SceneObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """A property by which objects answer a question.

    Attributes:
        questions: wordings of the question, each a sentence.
        explanation: predicate of the objects that answer it: "can be eaten".
        groups: groups or supergroups of categories that answer it.
        names: further categories that answer it.
        doubtful: groups and categories on which people would disagree; the question is not asked if one is present.
    """

    questions: tuple[str, ...]
    explanation: str
    groups: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    doubtful: tuple[str, ...] = ()

    def answers(self, name: str, group: str) -> bool:
        """Return whether a category answers the question."""
        return name in self.names or (name not in self.doubtful and any(in_group(group, key) for key in self.groups))

    def is_doubtful(self, name: str, group: str) -> bool:
        """Return whether people would disagree about a category."""
        return not self.answers(name, group) and any(name == key or in_group(group, key) for key in self.doubtful)


REASONS = (
    Reason(
        questions=("What could you eat here?", "I am hungry. What could help?", "What in this picture is food?"),
        explanation="can be eaten",
        groups=("food",),
        doubtful=listed("drink, animal, jack-o-lantern, teapot"),
    ),
    Reason(
        questions=("What could you drink here?", "I am thirsty. What could help?"),
        explanation="can be drunk",
        groups=("drink",),
        doubtful=listed("coconut, teapot, jar, amphora, cow, fountain, ice cream, watermelon"),
    ),
    Reason(
        questions=("What could you travel in or on?", "Which of these would take you to another town?"),
        explanation="can be travelled in or on",
        groups=("vehicle",),
        doubtful=listed(
            "horse, camel, elephant, unicorn, llama, dragon, skateboard, roller skate, ice skate, skis, sled, "
            "balloon, wheelchair, kick scooter, flying saucer, rocket, canoe"
        ),
    ),
    Reason(
        questions=("What could you wear?", "What belongs in a wardrobe?"),
        explanation="can be worn",
        groups=("garment", "shoe", "headwear"),
        doubtful=listed(
            "accessory, diving mask, roller skate, ice skate, boxing glove, medal, bandage, headphones, stethoscope, "
            "shield, lifebuoy, ribbon, suitcase, crown, yarn"
        ),
    ),
    Reason(
        questions=("What here can fly by itself?", "Which of these has wings or a motor to fly with?"),
        explanation="can fly",
        groups=("aircraft",),
        names=listed("dove, eagle, duck, swan, owl, flamingo, parrot, goose, bat, butterfly, bee, ladybug, mosquito"),
        doubtful=listed("bird, insect, dragon, unicorn, kite, balloon, boomerang, dinosaur, planet, cloud, star, dodo"),
    ),
    Reason(
        questions=("What lives in the sea?", "What could a diver meet under water?"),
        explanation="can live in the sea",
        groups=("sea animal",),
        doubtful=listed(
            "reptile, penguin, polar bear, duck, swan, goose, otter, beaver, hippopotamus, snail, sushi, diving mask, "
            "flamingo, worm, boat, anchor"
        ),
    ),
    Reason(
        questions=("What could you make music with?", "What would a band need?"),
        explanation="can make music",
        groups=("musical instrument",),
        doubtful=listed("bell, radio, microphone, headphones, phone, telephone, computer, laptop, television"),
    ),
    Reason(
        questions=("Which of these are animals?", "What here is a living creature that can move?"),
        explanation="can move around",
        groups=("animal",),
        doubtful=listed("teddy bear, dragon, unicorn, dinosaur, dodo, snowman, chicken leg, shrimp, sushi"),
    ),
    Reason(
        questions=("What could you read?", "What has printed words for somebody to read?"),
        explanation="can be read",
        names=listed("book, newspaper, scroll"),
        doubtful=listed("paper, device, banknote, stop sign, folder, stopwatch, credit card, die"),
    ),
    Reason(
        questions=("What could you draw or write with?", "What would leave a line on paper?"),
        explanation="can leave a line on paper",
        names=listed("pencil, pen, crayon, paintbrush"),
        doubtful=listed("stationery, device, lipstick"),
    ),
    Reason(
        questions=("What tells you how late it is?", "What would you look at not to miss your train?"),
        explanation="can tell the time",
        names=listed("watch, alarm clock"),
        doubtful=listed("timepiece, device, sun, church, calendar, locomotive, tram"),
    ),
    Reason(
        questions=("What could light a dark room?", "What gives light when the sun is down?"),
        explanation="can light a dark room",
        names=listed("light bulb, flashlight, candle"),
        doubtful=listed("device, weather, jack-o-lantern, christmas tree, traffic light, land vehicle, birthday cake"),
    ),
    Reason(
        questions=("What could you pay with?", "What belongs in a purse or a bank?"),
        explanation="can be paid with",
        groups=("money",),
        doubtful=listed("phone, gem, ring, watch, crown, handbag, accessory, medal"),
    ),
    Reason(
        questions=("What could you carry your things in?", "What would you pack before a journey?"),
        explanation="can carry things",
        names=listed("handbag, backpack, suitcase, briefcase"),
        doubtful=listed("container, money bag, toolbox, gift, land vehicle, garment, jar"),
    ),
    Reason(
        questions=("What would be needed to play in a team on a field or a court?", "Which of these are balls?"),
        explanation="can be played with as a ball",
        groups=("ball",),
        doubtful=listed("toy, sports gear, yarn, planet"),
    ),
    Reason(
        questions=("Which of these travel on water?", "How could you cross a lake?"),
        explanation="can cross a lake",
        groups=("boat",),
        doubtful=listed("aircraft, lifebuoy, sea animal, duck, swan, goose, anchor"),
    ),
    Reason(
        questions=("What would a carpenter use?", "Which of these help to build or repair something?"),
        explanation="can help to build or repair something",
        names=listed("hammer, saw, screwdriver, wrench, toolbox, ladder"),
        doubtful=listed("tool, stationery, knife, thread, paintbrush, scissors"),
    ),
)


def answering(reason: Reason, objects: Sequence[SceneObject], shown: Sequence[str] = ()) -> list[int] | None:
    """Find the objects that answer a question.

    Args:
        reason: the question.
        objects: objects of the scene.
        shown: names of things that the background photograph shows.

    Returns:
        Positions of all objects that answer it; None if one is doubtful, or the photograph shows an answer.
    """
    groups = [(name, group_of(name)) for name in shown]
    if any(reason.answers(*item) or reason.is_doubtful(*item) for item in groups):
        return None
    if any(reason.is_doubtful(thing.name, thing.group) for thing in objects):
        return None
    return [place for place, thing in enumerate(objects) if reason.answers(thing.name, thing.group)]

"""Invented forum posts with their authors' TL;DR, for the built-in data set "posts".

1. A story has slots. Its opening, facts and question name every slot, and the slots alone decide
   the summary: a post determines its summary, which says only what the post says. So keeping
   summaries apart keeps posts apart, and no retelling of a story lands in another split.
2. What is told varies, beside the slots: the order of the facts, which asides are thrown in and
   where, how it opens and asks, the paragraphs. The first sentence is a poor summary.
3. Facts stand alone (they lean on the opening at most), so any order reads well.
"""

from __future__ import annotations

from random import Random
from typing import Any, NamedTuple

from pipeline.data.builtin.maths import NAMES

_SHORTEST = 60  # words in a post; asides are added until it is reached


class Story(NamedTuple):
    """One family of posts: alternatives everywhere but in `facts`, which are all told."""

    subreddit: str
    slots: dict[str, tuple[str, ...]]
    titles: tuple[str, ...]
    openings: tuple[str, ...]
    facts: tuple[str, ...]
    asides: tuple[str, ...]
    questions: tuple[str, ...]
    summaries: tuple[str, ...]


def _numbers(first: int, last: int, step: int = 1) -> tuple[str, ...]:
    return tuple(str(number) for number in range(first, last + 1, step))


_GREETINGS = (
    "Long time reader, first post here.",
    "Sorry for the formatting, I am writing this on my phone.",
    "I never thought I would need to ask this, but here I am.",
    "I will try to keep this short.",
    "Not sure if this is the right place to ask.",
    "I have gone back and forth on this all week.",
)
_THANKS = (
    "Thanks in advance.",
    "Any advice is welcome.",
    "Happy to answer questions in the comments.",
    "Thank you for reading this far.",
    "Please be kind, I am new to this.",
)

STORIES = (
    Story(
        "roommates",
        {
            "name": NAMES,
            "bill": ("electricity", "internet", "gas", "water"),
            "months": _numbers(2, 6),
            "owed": _numbers(60, 320, 20),
            "plan": (
                "tell our landlord",
                "put it in writing",
                "cancel the contract",
                "start looking for a new roommate",
            ),
        },
        ("My roommate does not pay for the {bill}", "How do I get {name} to pay up?"),
        (
            "My roommate {name} and I get on well, except when it comes to money.",
            "I have shared a flat with {name} for over a year, and until recently it was fine.",
        ),
        (
            "The {bill} bill is in my name, and {name} has not paid a share for {months} months.",
            "By my count, {name} owes me {owed} dollars by now.",
            'Whenever I ask for the money, I am told "next week".',
        ),
        (
            "The flat itself is lovely and close to a park.",
            "Last night we even cooked together as if nothing was wrong.",
            "I know that I should have said something sooner.",
        ),
        (
            "Would it be going too far to {plan}?",
            "Should I {plan}, or give it more time?",
        ),
        (
            "{name} owes me {owed} dollars after {months} months without paying for the {bill}. "
            "Should I {plan}?",
            "My roommate {name} has skipped the {bill} bill for {months} months and owes me {owed} "
            "dollars. Would it be too much to {plan}?",
        ),
    ),
    Story(
        "jobs",
        {
            "field": ("a bank", "a hospital", "a small museum", "a software company", "a school"),
            "city": ("Leeds", "Denver", "Ottawa", "Bristol", "Portland", "Utrecht", "Perth"),
            "percent": _numbers(10, 35, 5),
            "commute": _numbers(40, 90, 5),
            "days": _numbers(3, 9),
        },
        ("Take the offer or stay?", "Offer from {city}, should I accept?"),
        (
            "I like my job at {field}, but now a company in {city} has made me an offer.",
            "Out of the blue, a company in {city} wants to hire me away from my job at {field}.",
        ),
        (
            "The new job pays {percent} percent more than I earn today.",
            "Getting to {city} would take {commute} minutes each way, while I can walk now.",
            "They want my answer within {days} days.",
        ),
        (
            "My manager has hinted at a promotion before, but nothing came of it.",
            "I have a cat and no children, in case that matters.",
            "The interview was friendly and the office had a nice view.",
            "My desk is next to the printer, which is a story of its own.",
        ),
        (
            "Is the money worth the time on the road?",
            "Would you take the new job or stay where you are?",
        ),
        (
            "Offer in {city} pays {percent} percent more than my job at {field} but means a "
            "{commute} minute commute. Take it or stay?",
            "I have {days} days to choose between my job at {field} and a {percent} percent raise "
            "in {city} with a {commute} minute commute.",
        ),
    ),
    Story(
        "travel",
        {
            "friend": NAMES,
            "country": ("Portugal", "Japan", "Norway", "Peru", "Greece", "Vietnam", "Morocco"),
            "days": _numbers(6, 20),
            "budget": _numbers(800, 3000, 200),
            "want": ("hike", "see museums", "lie on the beach", "try street food"),
            "rather": ("rent a car", "take night trains", "stay in one town", "join a tour"),
        },
        ("{days} days in {country}, need help", "We cannot agree on a trip to {country}"),
        (
            "My friend {friend} and I have finally booked flights to {country}.",
            "This summer I am going to {country} with {friend}, a friend from school.",
        ),
        (
            "We will be there for {days} days, with a budget of {budget} dollars each.",
            "What I want most is to {want}.",
            "Now {friend} tells me that the plan should be to {rather}, and I have my doubts.",
        ),
        (
            "Neither of us speaks the language, but we have an app.",
            "We have traveled together before and had a great time.",
            "My suitcase is already half packed, which says a lot about me.",
            "The flights were on sale, so we did not think for long.",
        ),
        (
            "How would you plan this so that both of us are happy?",
            "Can we do both on that budget, or should one of us give in?",
        ),
        (
            "{days} days in {country} on {budget} dollars each. I want to {want}, {friend} wants "
            "to {rather}. Can we do both?",
            "{friend} wants to {rather} in {country} and I want to {want}. How can "
            "both of us be happy with {days} days?",
        ),
    ),
    Story(
        "cooking",
        {
            "dish": ("lasagna", "risotto", "vegetable curry", "onion soup", "paella", "chili"),
            "guests": _numbers(5, 14),
            "day": ("Friday", "Saturday", "Sunday"),
            "trouble": ("far too salty", "watery", "burnt at the bottom", "bland"),
            "diet": ("is vegan", "cannot eat garlic", "is allergic to nuts", "avoids milk"),
            "guest": ("my uncle", "my boss", "a neighbor", "my sister", "an old friend"),
        },
        ("My {dish} fails every time", "Cooking for {guests} people and panicking"),
        (
            "I promised to make {dish} for a dinner at my place.",
            "Somehow I said yes to hosting a dinner, and the menu is {dish}.",
        ),
        (
            "There will be {guests} of us on {day}.",
            "Both of my test runs came out {trouble}, even though I followed the recipe.",
            "To make it harder, {guest} {diet}.",
        ),
        (
            "My kitchen is tiny and the oven has a mind of its own.",
            "Dessert is sorted, because the bakery downstairs is excellent.",
            "I did buy a new pot last month, so it is not the pot.",
            "Normally I live on toast, so this is a big step for me.",
        ),
        (
            "What am I doing wrong, and should I pick another dish?",
            "How can I fix this in time, or do I need a simpler dish?",
        ),
        (
            "I have to cook {dish} for {guests} people on {day}, but it keeps turning out "
            "{trouble}. How do I fix it, or should I switch?",
            "My {dish} always comes out {trouble}, but {guests} of us eat on {day} and "
            "{guest} {diet}. Should I make something else?",
        ),
    ),
    Story(
        "pets",
        {
            "pet": ("cat", "dog", "rabbit"),
            "petname": ("Biscuit", "Pepper", "Luna", "Waffles", "Moose", "Olive", "Ziggy"),
            "habit": (
                "hiding under the bed",
                "eating very little",
                "chewing the chairs",
                "making noise all night",
            ),
            "event": (
                "we moved house",
                "the baby arrived",
                "we got new furniture",
                "my partner started night shifts",
            ),
            "weeks": _numbers(2, 8),
            "cost": _numbers(60, 240, 20),
        },
        ("My {pet} is not acting normal", "Help with {petname}, please"),
        (
            "We have a {pet} called {petname}, who has always been easy to live with.",
            "Our {pet} {petname} is the best thing in this house, but we have a problem.",
        ),
        (
            "For {weeks} weeks now, {petname} has been {habit}.",
            "The change began when {event}.",
            "A visit to the vet would cost {cost} dollars, and money is tight this month.",
        ),
        (
            "Toys and treats change nothing.",
            "My neighbor says to wait, but my neighbor has only ever had goldfish.",
            "Photos are on my profile, if you need cheering up.",
            "Apart from that, the coat is shiny and the eyes are clear.",
        ),
        (
            "Should we pay for the vet now or give it more time?",
            "Is this just stress, or is it time to see the vet?",
        ),
        (
            "Ever since {event}, our {pet} {petname} has been {habit}. Should we pay {cost} "
            "dollars for the vet or wait?",
            "Our {pet} {petname} has been {habit} for {weeks} weeks. Is a {cost} dollar vet "
            "visit needed or is it stress?",
        ),
    ),
    Story(
        "techsupport",
        {
            "machine": ("laptop", "gaming laptop", "work laptop", "netbook"),
            "age": _numbers(3, 9),
            "symptom": (
                "shuts down without warning",
                "takes ten minutes to start",
                "loses the wireless signal",
                "freezes when I open a video",
            ),
            "event": (
                "the last update",
                "a fall from the sofa",
                "a hot day outside",
                "I lent it to my brother",
            ),
            "tried": (
                "reinstalled everything",
                "bought a new charger",
                "deleted half my files",
                "cleaned the fan",
            ),
            "budget": _numbers(150, 750, 50),
        },
        ("My {machine} {symptom}", "Repair or replace an old {machine}?"),
        (
            "I need some help with my {machine}, which is {age} years old.",
            "My trusty {machine} has served me for {age} years, but it may be dying.",
        ),
        (
            "Now and then the {machine} {symptom}, and I cannot work like that.",
            "The trouble started after {event}.",
            "So far I have {tried}, and it made no difference.",
            "For a new one, my budget is {budget} dollars.",
        ),
        (
            "My backups are up to date, I learned that lesson years ago.",
            "I mostly write documents and look at recipes.",
            "There is no strange smell and nothing is hot.",
        ),
        (
            "Is it worth repairing, or should I buy a new one?",
            "Would you fix it or spend the money on a new one?",
        ),
        (
            "After {event}, my {age} year old {machine} often {symptom}. Repair it, or spend "
            "{budget} dollars on a new one?",
            "My {machine} often {symptom}, and I have {tried} without luck. Fix it, or replace it "
            "for {budget} dollars?",
        ),
    ),
    Story(
        "studying",
        {
            "subject": (
                "chemistry",
                "statistics",
                "art history",
                "anatomy",
                "contract law",
                "linear algebra",
            ),
            "weeks": _numbers(2, 7),
            "chapters": _numbers(8, 24),
            "hours": _numbers(5, 25, 5),
            "work": ("a cafe", "a bookshop", "a call center", "a gym", "a petrol station"),
            "option": ("drop a shift", "skip the exercises", "join a study group", "hire a tutor"),
        },
        ("{weeks} weeks until my {subject} exam", "Behind in {subject}, is it too late?"),
        (
            "I am taking {subject} this term, and I have let it slide.",
            "My final exam in {subject} is coming closer and I am far behind.",
        ),
        (
            "The exam is in {weeks} weeks, and {chapters} chapters are still unread.",
            "I also work {hours} hours a week at {work}, which I cannot give up.",
        ),
        (
            "The lecturer is kind but speaks very fast.",
            "My notes from the first month are actually pretty good.",
            "Flash cards have never done anything for me.",
            "I passed all my other courses without much trouble.",
        ),
        (
            "Should I {option} to catch up, or postpone the exam?",
            "Would it save me to {option}, or is it smarter to take the exam next term?",
        ),
        (
            "{subject} exam in {weeks} weeks with {chapters} chapters unread, and I work {hours} "
            "hours a week. Should I {option} or postpone?",
            "I have {weeks} weeks to read {chapters} chapters of {subject} next to my job at "
            "{work}. Should I {option} or take the exam later?",
        ),
    ),
    Story(
        "gardening",
        {
            "plant": ("tomato plants", "roses", "cucumbers", "hydrangeas", "chili plants"),
            "count": _numbers(3, 12),
            "where": ("on a balcony", "in a raised bed", "in a greenhouse", "along the fence"),
            "symptom": ("turning yellow", "curling up", "getting brown spots", "dropping off"),
            "days": _numbers(2, 6),
            "advice": ("use less water", "cut them back", "change the soil", "add fertilizer"),
            "adviser": ("my aunt", "the man at the shop", "a friend", "my neighbor"),
        },
        ("What is wrong with my {plant}?", "Losing my {plant}, please help"),
        (
            "This spring I planted {count} {plant} {where}.",
            "I am growing {count} {plant} {where}, my first try at anything green.",
        ),
        (
            "For a week now, the leaves have been {symptom}, starting at the bottom.",
            "I water every {days} days, always in the evening.",
            "I asked around, and {adviser} says to {advice}.",
        ),
        (
            "The herbs next to them could not be happier.",
            "I looked for insects and found only a very content snail.",
            "It has been a mild month with a little rain.",
            "My children laugh at me for talking to them.",
        ),
        (
            "Should I {advice}, or is something else going on?",
            "Is it right to {advice}, or would you do something else?",
        ),
        (
            "The leaves of my {count} {plant} keep {symptom} although I water every {days} days. "
            "Should I {advice}, as {adviser} says?",
            "I have {count} {plant} {where} whose leaves keep {symptom}. Is it right to {advice}, "
            "or is it something else?",
        ),
    ),
    Story(
        "running",
        {
            "race": ("a half marathon", "a marathon", "a trail race", "a charity run"),
            "weeks": _numbers(3, 9),
            "part": ("left knee", "right ankle", "lower back", "left heel", "right hip"),
            "longest": _numbers(8, 18),
            "runs": _numbers(2, 5),
            "alternative": (
                "swim instead",
                "rest completely",
                "switch to cycling",
                "run shorter distances",
            ),
        },
        ("Pain in my {part} before a race", "{weeks} weeks to go and I am hurt"),
        (
            "I signed up for {race} last year and have trained for it ever since.",
            "My first big goal as a runner is {race}.",
        ),
        (
            "The race is in {weeks} weeks.",
            "Since my last long run, my {part} has hurt whenever I go downhill.",
            "I run {runs} times a week, and my longest run so far was {longest} kilometers.",
            "A friend from the club told me to {alternative} until the pain stops.",
        ),
        (
            "My shoes are almost new, so I doubt that it is the shoes.",
            "The weather here has been perfect, which makes it worse.",
            "I sleep well and stretch every morning.",
        ),
        (
            "Should I {alternative}, or keep to the plan and hope?",
            "Will it help to {alternative}, or should I drop out of the race?",
        ),
        (
            "My {part} hurts {weeks} weeks before {race}. Should I {alternative}, as a friend "
            "says, or not?",
            "I am training for {race} in {weeks} weeks, and my {part} hurts. Will it help to "
            "{alternative}, or should I drop out?",
        ),
    ),
    Story(
        "neighbors",
        {
            "where": ("above me", "below me", "next door", "across the hall"),
            "noise": ("plays the drums", "moves furniture", "sings karaoke", "runs a blender"),
            "hour": _numbers(2, 5),
            "times": _numbers(3, 6),
            "months": _numbers(2, 7),
            "tried": (
                "left a polite note",
                "knocked on the door",
                "bought earplugs",
                "baked a cake as a peace offer",
            ),
            "next": ("call the landlord", "call the police", "move out", "make noise myself"),
        },
        ("The neighbor {where} never sleeps", "Noise until {hour} in the morning"),
        (
            "I live in an old building with thin walls, and my neighbor {where} drives me mad.",
            "There is a neighbor {where} who does not seem to own a clock.",
        ),
        (
            "This person {noise} until {hour} in the morning, about {times} nights a week.",
            "The noise has gone on for {months} months now.",
            "I {tried}, but nothing changed.",
        ),
        (
            "During the day you hear nothing at all.",
            "I start work early, so I am tired all the time.",
            "The rent is low and I love the area.",
            "Everyone else in the building is very quiet.",
        ),
        (
            "Would it be wrong of me to {next}?",
            "Should I {next}, or try to talk first?",
        ),
        (
            "The neighbor {where} {noise} until {hour} in the morning. I {tried}, but nothing "
            "changed; should I {next}?",
            "For {months} months the neighbor {where} has kept me up until {hour} in the morning. "
            "Would I be wrong to {next}?",
        ),
    ),
    Story(
        "personalfinance",
        {
            "saved": _numbers(2000, 9000, 500),
            "debt": ("a student loan", "a car loan", "credit card debt", "a bank loan"),
            "rate": _numbers(4, 19),
            "goal": ("a wedding", "a trip around the world", "a new kitchen", "a down payment"),
            "years": _numbers(2, 5),
            "relative": ("father", "mother", "brother", "sister", "partner"),
        },
        ("Pay off what I owe or save?", "What to do with {saved} dollars"),
        (
            "For the first time in my life I have some money put aside, {saved} dollars to be "
            "exact.",
            "After a good year I have saved {saved} dollars and do not know what to do with it.",
        ),
        (
            "I still have {debt} of about the same size, at {rate} percent interest.",
            "At the same time, I would like to pay for {goal} in {years} years.",
            "My {relative} says to get rid of the debt before anything else.",
        ),
        (
            "My job is safe and my rent is reasonable.",
            "I keep a small emergency fund apart from this.",
            "I have never invested in anything and do not plan to start.",
            "Spreadsheets frighten me a little.",
        ),
        (
            "Should I pay off the debt or keep the money for later?",
            "Would you pay off the debt or hold on to the money?",
        ),
        (
            "I have {saved} dollars and {debt} at {rate} percent. Pay off the debt, or save for "
            "{goal} in {years} years?",
            "Should I pay off {debt} at {rate} percent with my {saved} dollars, as my {relative} "
            "says, or keep the money for {goal}?",
        ),
    ),
    Story(
        "cars",
        {
            "car": ("hatchback", "station wagon", "pickup truck", "small van"),
            "age": _numbers(8, 17),
            "part": ("gearbox", "clutch", "exhaust", "cooling system", "steering"),
            "repair": _numbers(600, 2400, 200),
            "value": _numbers(1000, 3000, 250),
            "use": (
                "drive to work",
                "take the kids to school",
                "visit my parents",
                "carry my tools",
            ),
        },
        ("Is my {car} worth fixing?", "{repair} dollars for a repair, yes or no?"),
        (
            "I drive a {car} that is {age} years old, and I am fond of it.",
            "My {car} is {age} years old and has never let me down until now.",
        ),
        (
            "According to the garage, the {part} has to be replaced for {repair} dollars.",
            "Without the repair, I could sell the car for {value} dollars.",
            "I need a car to {use}, and there is no bus here.",
        ),
        (
            "The paint is still shiny and the seats are like new.",
            "The mechanic has always been honest with me.",
            "There is no loan on the car.",
            "A friend keeps telling me to get an electric one.",
        ),
        (
            "Would you pay for the repair or sell the car?",
            "Should I have the car fixed or let it go?",
        ),
        (
            "Replacing the {part} of my {age} year old {car} costs {repair} dollars, and I could "
            "sell it for {value} dollars. Fix or sell?",
            "Should I pay {repair} dollars to fix the {part} of my {car}, which I need to {use}, "
            "or sell it for {value} dollars?",
        ),
    ),
    Story(
        "houseguests",
        {
            "relative": ("cousin", "old classmate", "former roommate", "second cousin"),
            "name": NAMES,
            "weeks": _numbers(2, 9),
            "rooms": _numbers(2, 3),
            "reason": (
                "the new house is being painted",
                "the old lease has ended",
                "a course in town starts soon",
                "hotels are too expensive",
            ),
            "worry": (
                "I work from home",
                "we have a newborn",
                "my partner needs quiet",
                "the walls are thin",
            ),
        },
        ("My {relative} wants to stay with us", "How to say no to {name}"),
        (
            "My {relative} {name} called yesterday with a big request.",
            "I need an outside view on a request that came from my {relative} {name}.",
        ),
        (
            "The plan is that {name} stays with us for {weeks} weeks, because {reason}.",
            "Our flat has only {rooms} rooms, and {worry}.",
            "An answer is expected by the weekend.",
        ),
        (
            "My parents think that one should always help out.",
            "The sofa bed is not even comfortable.",
            "Years ago {name} helped me out, so I feel bad about it.",
            "I love having people over for a day or two.",
        ),
        (
            "Should I agree, offer a shorter stay, or just say no?",
            "Is it rude to say no, or could I offer a shorter stay?",
        ),
        (
            "My {relative} {name} wants to stay for {weeks} weeks in our {rooms} rooms, but "
            "{worry}. May I say no or offer less?",
            "{name} asked to stay for {weeks} weeks because {reason}. Should I agree, although "
            "{worry}?",
        ),
    ),
    Story(
        "music",
        {
            "instrument": ("piano", "violin", "guitar", "cello", "clarinet"),
            "months": _numbers(5, 18),
            "teacher": NAMES,
            "price": _numbers(25, 70, 5),
            "problem": (
                "spends half the lesson talking",
                "never lets me choose a piece",
                "cancels at the last minute",
                "only teaches scales",
            ),
            "event": (
                "my sister's wedding",
                "a school concert",
                "a friend's birthday",
                "an open stage night",
            ),
        },
        ("Time for a new {instrument} teacher?", "Stuck after {months} months of {instrument}"),
        (
            "I started to learn the {instrument} as an adult, and I love it.",
            "Playing the {instrument} has been the best part of my week.",
        ),
        (
            "I have taken lessons with {teacher} for {months} months, at {price} dollars each.",
            "The trouble is that {teacher} {problem}.",
            "I would like to play at {event}, and I am nowhere near ready.",
        ),
        (
            "My flat has thick walls, so I can practice in the evening.",
            "At first the lessons were great.",
            "There are not many teachers in this town.",
            "I practice on most days, even if it is only for a short time.",
        ),
        (
            "Should I speak up or look for another teacher before it is too late?",
            "Would you find someone new or say something first?",
        ),
        (
            "My {instrument} teacher {teacher} {problem}, for {price} dollars a lesson. Should I "
            "speak up or find someone else before {event}?",
            "After {months} months of {instrument} I am not ready for {event}, because {teacher} "
            "{problem}. Switch teachers or speak up?",
        ),
    ),
    Story(
        "coworkers",
        {
            "name": NAMES,
            "deed": (
                "takes credit for my reports",
                "eats my lunch",
                "talks over me in meetings",
                "leaves the hard calls to me",
            ),
            "team": _numbers(4, 12),
            "times": _numbers(3, 9),
            "talk": ("laughed it off", "got angry", "promised to stop", "blamed the stress"),
            "step": (
                "talk to our manager",
                "ask for another team",
                "raise it in a meeting",
                "keep a written record",
            ),
        },
        ("A coworker {deed}", "What would you do about {name}?"),
        (
            "I work in a team of {team} people, and one of them, {name}, {deed}.",
            "In our team of {team} there is one person I cannot deal with: {name}, who {deed}.",
        ),
        (
            "I counted {times} such cases this month alone.",
            "When I spoke up, {name} {talk}, and a day later it happened again.",
        ),
        (
            "Apart from this, I like my job and want to stay.",
            "We sit in an open office, so everyone hears everything.",
            "I am not looking for a fight.",
            "Our manager is fair but always busy.",
        ),
        (
            "Is it right to {step}, or would I make things worse?",
            "Should I {step}, or try to talk once more?",
        ),
        (
            "My coworker {name} {deed}, {times} times this month, and {talk} when I spoke up. "
            "Should I {step}?",
            "{name} from my team {deed} and {talk} when I spoke up. Should I {step}, or try "
            "once more?",
        ),
    ),
)


def draw(random: Random) -> tuple[str, dict[str, Any]]:
    """A summary (the key) and the row of a post that it fits, without its id."""
    story = random.choice(STORIES)
    slots = {slot: random.choice(values) for slot, values in story.slots.items()}
    title, opening, question = (
        _sentence(random.choice(choices), slots)
        for choices in (story.titles, story.openings, story.questions)
    )
    choose = Random("\n".join(slots.values())).choice  # by the slots: see choice 1
    summary = _sentence(choose(story.summaries), slots)
    facts = [_sentence(fact, slots) for fact in story.facts]
    random.shuffle(facts)
    post = _tell(
        random,
        [opening, *facts],
        [_sentence(aside, slots) for aside in story.asides],
        question,
    )
    row = {"subreddit": story.subreddit, "title": title, "post": post, "summary": summary}
    return summary, row


def _sentence(text: str, slots: dict[str, str]) -> str:
    """The text with its slots filled, beginning with a capital."""
    filled = text.format(**slots)
    return filled[0].upper() + filled[1:]


def _tell(random: Random, told: list[str], asides: list[str], question: str) -> str:
    """The opening and facts with asides among them, then the question, in paragraphs."""
    first = [random.choice(_GREETINGS)] if random.random() < 0.4 else []
    last = [random.choice(_THANKS)] if random.random() < 0.4 else []
    asides = random.sample(asides, len(asides))
    wanted = random.randint(1, 3)
    middle = list(told)
    while asides and (wanted > 0 or _count_words([*first, *middle, question, *last]) < _SHORTEST):
        middle.insert(random.randint(1, len(middle)), asides.pop())  # 0 is the opening's place
        wanted -= 1
    sentences = [*first, *middle, question, *last]
    breaks = {
        "none": set(),
        "before the question": {len(first) + len(middle)},
        "also in the middle": {len(first) + len(middle), len(first) + len(middle) // 2},
    }[random.choice(("none", "before the question", "also in the middle"))]
    post = sentences[0]
    for index, sentence in enumerate(sentences[1:], start=1):
        post += ("\n\n" if index in breaks else " ") + sentence
    return post


def _count_words(sentences: list[str]) -> int:
    return sum(len(sentence.split()) for sentence in sentences)

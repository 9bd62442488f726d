"""Print English sentences of many words, one a line, for voices to say: python examples/sentences.py COUNT [SEED]

They are built for the ear, not for sense: common words of every sound and spelling, in the order that grammar wants.
"""

import random
import sys

NOUNS = """
air answer apple arm army art aunt baby back bag ball band bank bath beach bear beard bed bell bench bird birth board
boat body bone book bottle box boy brain branch bread breath brick bridge brother brush bucket building bus bush
business butter button cake camera camp candle captain car card castle cat cause chain chair chance change chapter
cheese chest chicken child choice church circle citizen city class clock cloth cloud coat coffee coin colour company
computer cook copper corner cotton country couple course court cousin cow cream crowd cup dance danger daughter day
death desert desk dinner direction doctor dog doll door doubt dream dress drink driver dust ear earth edge education
effect egg engine evening event example eye face fact family farm father fear feather field fight figure finger fire
fish flag flame flight floor flower fly food foot forest fork friend fruit future game garden gate ghost gift girl glass
glove gold government grandfather grass guest guitar gun hair half hall hammer hand harbour hat head health heart heat
hill history hole holiday home honey hope horse hospital hour house hunger husband ice idea industry inch insect island
jacket jam jewel job join joke journey judge juice jump key king kitchen knee knife knowledge ladder lady lake lamp land
language laugh law leaf leather leg lesson letter level library life light lion lip list lock look lunch machine man map
mark market match meal measure meat meeting member memory metal middle mile milk mind minute mirror money monkey month
moon morning mother mountain mouse mouth movie muscle museum music nail name nation nature neck needle news night noise
north nose note number nurse ocean offer office oil onion opinion orange order owner page pain paint pair paper parcel
parent park part party path payment peace pen pencil people person photograph picture piece pig pilot place plane plant
plate play pleasure pocket poem point poison police pool porter position potato pound power present president price
prison prize problem promise province public pull pump purpose queen question rabbit radio rail rain reason record
request river road rock roof room root rope rose rule sail salt sand school science sea season seat secret seed sentence
servant shade shadow shape sheep sheet shelf shell ship shirt shoe shop shoulder shower side sign silver singer sister
size skin skirt sky sleep smile smoke snake snow soap society sock soldier son song soul soup south space speech spoon
spring square stage stair stamp star station steam stomach stone store storm story stove stranger straw stream street
strength student sugar suit summer sun surprise table tail tailor task taste teacher team television test theatre thief
thing thought thread throat thumb thunder ticket tiger time tongue tooth top towel tower town toy trade train travel
treasure tree trick trouble truck truth tube twin uncle union valley value van vegetable vehicle verse victory view
village violin visit visitor voice volume voyage wagon waist wall war watch water wave way weather wedding week weight
west wheat wheel whisper wife wind window wine wing winter wire wish witness wolf woman wood wool word work world worm
wound writer year yard youth zebra zoo
""".split()

ADJECTIVES = """
able afraid alive alone angry awful bad beautiful better big bitter black blind blue bold brave bright broken brown busy
calm careful cheap clean clear clever cold common cool cruel curious dangerous dark dead deep delicate different dirty
double dry dull early eager easy empty equal evil fair false famous fast fat final fine first flat foolish foreign free
fresh friendly full funny general gentle giant glad good grand grateful gray great green happy hard healthy heavy high
hollow holy honest hot huge human hungry ill important jealous junior just kind large last late lazy light little local
lonely long loose loud lovely low lucky mad main medical mild modern narrow natural near nervous new nice noble noisy
normal old open ordinary other own pale patient perfect plain pleasant polite poor possible pretty private proud pure
purple quick quiet rare raw ready real red rich right ripe rough round royal rude sad safe same second secret serious
several shallow sharp short shy sick silent silly similar simple single slow small smart smooth social soft solid sour
special steady stiff straight strange strict strong stupid sudden sweet tall terrible thick thin third tight tiny tired
true ugly unusual useful usual vast violent warm weak wet white whole wide wild wise wooden wonderful worth wrong yellow
young zealous
""".split()

# Infinitive, past; the third person is made of the first.
VERBS = [
    pair.split("/")
    for pair in """
accept/accepted add/added admire/admired allow/allowed answer/answered ask/asked attack/attacked avoid/avoided
bake/baked beat/beat become/became believe/believed bite/bit blame/blamed blow/blew borrow/borrowed break/broke
bring/brought build/built burn/burned buy/bought call/called carry/carried catch/caught change/changed choose/chose
clean/cleaned climb/climbed close/closed collect/collected count/counted cover/covered cross/crossed cut/cut
describe/described destroy/destroyed discover/discovered divide/divided draw/drew drink/drank drive/drove drop/dropped
eat/ate enjoy/enjoyed enter/entered examine/examined expect/expected explain/explained feed/fed feel/felt fetch/fetched
find/found finish/finished follow/followed forget/forgot forgive/forgave freeze/froze gather/gathered get/got give/gave
guard/guarded guess/guessed hate/hated have/had hear/heard help/helped hide/hid hit/hit hold/held imagine/imagined
improve/improved include/included invite/invited join/joined judge/judged keep/kept kick/kicked kiss/kissed know/knew
lead/led learn/learned leave/left lift/lifted like/liked lose/lost love/loved make/made manage/managed mark/marked
measure/measured meet/met mention/mentioned miss/missed mix/mixed move/moved need/needed notice/noticed obey/obeyed
offer/offered open/opened order/ordered own/owned paint/painted pass/passed pay/paid pick/picked plan/planned
point/pointed prefer/preferred prepare/prepared produce/produced promise/promised protect/protected prove/proved
pull/pulled punish/punished push/pushed put/put raise/raised reach/reached read/read receive/received refuse/refused
remember/remembered remove/removed repair/repaired repeat/repeated report/reported return/returned ring/rang ruin/ruined
save/saved say/said search/searched see/saw sell/sold send/sent serve/served shake/shook share/shared shoot/shot
show/showed shut/shut sing/sang smell/smelled spend/spent spoil/spoiled steal/stole stop/stopped study/studied
suggest/suggested support/supported take/took taste/tasted teach/taught tear/tore tell/told thank/thanked throw/threw
touch/touched trust/trusted try/tried turn/turned understand/understood use/used visit/visited want/wanted warn/warned
wash/washed watch/watched wear/wore win/won wish/wished worry/worried write/wrote
""".split()
]

ADVERBS = """
again ago almost already also always anywhere away badly carefully certainly clearly closely completely daily deeply
easily else enough even ever everywhere exactly finally gladly gently hardly hopefully however immediately indeed inside
instead jointly kindly largely lately loudly maybe meanwhile mostly nearly never nowhere now often once only outside
perhaps plainly possibly probably properly quickly quietly quite rarely rather really recently sadly seldom shortly
simply slowly sometimes soon still suddenly surely there therefore today together tomorrow tonight too truly twice
usually very well yesterday yet
""".split()

NAMES = """
Adam Agnes Albert Alice Amy Andrew Anna Arthur Barbara Ben Betty Bob Brian Carol Charles Chloe Clara Colin Daisy Daniel
David Diana Donald Edith Edward Ellen Emma Eric Felix Fiona Frank Fred George Grace Harold Harry Helen Henry Hugh Ian
Isabel Jack James Jane Janet Jim Joan Joe John Joyce Judith Julia Karen Kate Keith Kevin Laura Leo Linda Lucy Luke
Margaret Mark Martha Mary Matthew Max Michael Molly Nancy Neil Nicholas Nora Oliver Oscar Pamela Paul Peggy Peter Philip
Rachel Ralph Rebecca Richard Robert Roger Rose Ruth Sally Sam Sarah Simon Sophie Stephen Susan Thomas Tim Tom Victor
Violet Walter William Zoe
""".split()

PREPOSITIONS = """
about above across after against along among around at before behind below beneath beside between beyond by down during
except for from in inside into near of off on onto over past round since through till to toward under until up upon with
within without
""".split()

THE = "the the the the the a a my your his her its our their this that every some no any one another each".split()
MANY = """
two three four five six seven eight nine ten eleven twelve thirteen twenty thirty forty fifty hundred thousand many few
more most all both these those
""".split()
WHO = "I you he she we they it who somebody nobody everyone".split()
MAY = """
can could will would should shall may might must cannot didn't won't couldn't shouldn't wouldn't don't doesn't
""".split()
AND = "and and but or because if when while so as than that where though unless".split()
BEGIN = "well yes no oh please then here now why how what when where which".split()


def plural(noun):
    irregular = {
        "man": "men",
        "woman": "women",
        "child": "children",
        "foot": "feet",
        "tooth": "teeth",
        "mouse": "mice",
        "people": "people",
        "wife": "wives",
        "knife": "knives",
        "life": "lives",
        "leaf": "leaves",
        "wolf": "wolves",
        "half": "halves",
        "shelf": "shelves",
        "thief": "thieves",
        "sheep": "sheep",
        "news": "news",
        "fish": "fish",
        "police": "police",
    }
    return irregular.get(noun) or third(noun)


def third(word):
    if word == "have":
        return "has"
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    return word[:-1] + "ies" if word.endswith("y") and word[-2] not in "aeou" else word + "s"


def gerund(verb):
    if verb.endswith("e") and not verb.endswith("ee"):
        return verb[:-1] + "ing"
    short = len(verb) > 2 and verb[-1] in "bdgmnpt" and verb[-2] in "aeiou" and verb[-3] not in "aeiou"
    return verb + (verb[-1] if short and verb not in ("visit", "open", "enter", "happen") else "") + "ing"


class Speaker:
    """Draws words so that all of a list come before any comes again."""

    def __init__(self, seed):
        self.rng, self.left = random.Random(seed), {}

    def pick(self, words):
        left = self.left.setdefault(id(words), [])
        if not left:
            left += self.rng.sample(words, len(words))
        return left.pop()

    def noun_phrase(self):
        kind = self.rng.random()
        if kind < 0.2:
            return self.pick(WHO)
        if kind < 0.35:
            return self.pick(NAMES)
        adjective = [self.pick(ADJECTIVES)] if self.rng.random() < 0.5 else []
        if kind < 0.55:
            return " ".join([self.pick(MANY), *adjective, plural(self.pick(NOUNS))])
        if kind < 0.6:
            return f"{self.pick(NAMES)}'s {self.pick(NOUNS)}"
        article = self.pick(THE)
        following = (adjective or [""])[0]
        noun = self.pick(NOUNS)
        if article == "a" and (following or noun)[0] in "aeiou":
            article = "an"
        return " ".join([article, *adjective, noun])

    def verb(self):
        infinitive, past = self.pick(VERBS)
        kind = self.rng.random()
        if kind < 0.45:
            return past
        if kind < 0.6:
            return third(infinitive)
        if kind < 0.8:
            return f"{self.pick(MAY)} {infinitive}"
        return self.rng.choice(("is", "was", "are", "were", "been", "am")) + " " + gerund(infinitive)

    def clause(self):
        words = [self.noun_phrase(), self.verb(), self.noun_phrase()]
        if self.rng.random() < 0.6:
            words += [self.pick(PREPOSITIONS), self.noun_phrase()]
        if self.rng.random() < 0.35:
            words.insert(self.rng.choice((0, 1, len(words))), self.pick(ADVERBS))
        return " ".join(words)

    def sentence(self):
        kind = self.rng.random()
        text = self.clause()
        if kind < 0.15:
            text = f"{self.pick(BEGIN)} {text}"
        elif kind < 0.35:
            text = f"{text} {self.pick(AND)} {self.clause()}"
        elif kind < 0.5:
            text = (
                f"{self.noun_phrase()} {self.rng.choice(('is', 'was', 'seems', 'will be', 'has been'))} "
                f"{self.pick(ADVERBS)} {self.pick(ADJECTIVES)}"
            )
        elif kind < 0.6:
            text = " ".join(
                self.pick(self.rng.choice((NOUNS, ADJECTIVES, NAMES, ADVERBS))) for _ in range(self.rng.randint(2, 5))
            )
        return text[0].upper() + text[1:] + self.rng.choice("...?!")


if __name__ == "__main__":
    speaker = Speaker(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    for _ in range(int(sys.argv[1])):
        print(speaker.sentence())

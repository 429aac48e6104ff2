; Catch: a ball falls, a paddle moved with left and right catches it.
; A caught ball scores; a missed one costs a life; without lives the screen darkens until start is pressed.

SCORE    = 0xC0A0  ; caught balls, stops at 255
MISSES   = 0xC0A1  ; missed balls, stops at LIVES_AT_START
LIVES    = 0xC0A2  ; 0: the game is over
BALL_X   = 0xC0A3  ; left edge in pixels, 12 to 139
BALL_Y   = 0xC0A4  ; upper edge in pixels, 8 to FLOOR
PADDLE_X = 0xC0A5  ; left edge in pixels, 0 to PADDLE_LAST
RANDOM   = 0xC0A6  ; two bytes, a shift register that takes one step a frame

LIVES_AT_START = 3
PADDLE_SPEED   = 3    ; pixels a frame
PADDLE_LAST    = 135  ; the paddle is 24 pixels wide, the screen 160
BALL_SPEED     = 2    ; pixels a frame
BALL_TOP       = 8    ; under the row of lives and score
FLOOR          = 128  ; here the ball's lower edge meets the paddle

OAM  = 0xFE00  ; sprites: y + 16, x + 8, tile, attributes
MAP  = 0x9800  ; background, 32 tiles a row
JOYP = 0x00    ; registers, from 0xFF00
IF   = 0x0F
LCDC = 0x40
LY   = 0x44
BGP  = 0x47
OBP0 = 0x48
IE   = 0xFF

    org 0x0040  ; vertical blank: it only has to wake the halted processor
    reti

    org 0x0100
    nop
    jp start

    org 0x0134
    db "CATCH"

    org 0x0150
start:
    di
    ld sp, 0xFFFE
wait_for_blank:
    ldh a, (LY)
    cp 144
    jr c, wait_for_blank
    xor a
    ldh (LCDC), a
    ld hl, 0x8000
clear_video:
    xor a
    ld (hl+), a
    ld a, h
    cp 0xA0
    jr nz, clear_video
    ld hl, OAM
clear_sprites:
    xor a
    ld (hl+), a
    ld a, l
    cp 0xA0
    jr nz, clear_sprites
    ld hl, 0x8000
    ld de, tiles
    ld b, tiles_end - tiles
copy_tiles:
    ld a, (de)
    inc de
    ld (hl+), a
    dec b
    jr nz, copy_tiles
    ld hl, MAP + 544  ; the floor, row 17
    ld b, 20
    ld a, 3
draw_floor:
    ld (hl+), a
    dec b
    jr nz, draw_floor
    xor a
    ld (SCORE), a
    ld (MISSES), a
    ld a, LIVES_AT_START
    ld (LIVES), a
    ld a, 68
    ld (PADDLE_X), a
    ld a, 0xAC
    ld (RANDOM), a
    ld a, 0xE1
    ld (RANDOM + 1), a
    call new_ball
    ld a, 0xE4  ; colours 0 to 3, from light to dark
    ldh (BGP), a
    ldh (OBP0), a
    xor a
    ldh (IF), a
    ld a, 1
    ldh (IE), a
    ld a, 0x93  ; screen, tiles at 0x8000, sprites and background on
    ldh (LCDC), a
    ei

frame:
    halt
    nop
    call next_random
    ld a, (LIVES)
    cp 0
    jr z, game_over
    call move_paddle
    call move_ball
    call draw  ; still before the first line of the next frame
    jr frame

game_over:
    ld a, 0x1B  ; dark for light
    ldh (BGP), a
    ld a, 0x10
    ldh (JOYP), a
    ldh a, (JOYP)
    and 8  ; start, 0 while held
    jr nz, frame
    jp start

next_random:  ; one step of a Galois register of 16 bits: 65,535 steps until it repeats
    ld a, (RANDOM)
    ld l, a
    ld a, (RANDOM + 1)
    ld h, a
    srl h
    rr l
    jr nc, store_random
    ld a, h
    xor 0xB4
    ld h, a
store_random:
    ld a, l
    ld (RANDOM), a
    ld a, h
    ld (RANDOM + 1), a
    ret

new_ball:
    ld a, BALL_TOP
    ld (BALL_Y), a
    ld a, (RANDOM)
    and 127
    add a, 12
    ld (BALL_X), a
    ret

move_paddle:
    ld a, 0x20
    ldh (JOYP), a
    ldh a, (JOYP)
    ldh a, (JOYP)  ; the lines of a real pad need a moment
    ld b, a
    ld a, (PADDLE_X)
    ld c, a
    ld a, b
    and 2  ; left, 0 while held
    jr nz, not_left
    ld a, c
    sub PADDLE_SPEED
    jr nc, set_left
    xor a
set_left:
    ld c, a
not_left:
    ld a, b
    and 1  ; right
    jr nz, not_right
    ld a, c
    add a, PADDLE_SPEED
    cp PADDLE_LAST
    jr c, set_right
    ld a, PADDLE_LAST
set_right:
    ld c, a
not_right:
    ld a, c
    ld (PADDLE_X), a
    ret

move_ball:
    ld a, (BALL_Y)
    add a, BALL_SPEED
    ld (BALL_Y), a
    cp FLOOR
    ret c
    ld a, (PADDLE_X)
    ld b, a
    ld a, (BALL_X)
    add a, 7
    sub b
    cp 31  ; 8 + 24 pixels overlap in 31 places
    jr nc, missed
    ld a, (SCORE)
    cp 255
    jr z, new_ball
    inc a
    ld (SCORE), a
    jr new_ball
missed:
    ld a, (MISSES)
    inc a
    ld (MISSES), a
    ld a, (LIVES)
    dec a
    ld (LIVES), a
    jr new_ball

draw:
    ld hl, OAM
    ld a, (BALL_Y)
    add a, 16
    ld (hl+), a
    ld a, (BALL_X)
    add a, 8
    ld (hl+), a
    ld a, 1
    ld (hl+), a
    xor a
    ld (hl+), a
    ld a, (PADDLE_X)
    add a, 8
    ld c, a
    ld b, 3
draw_paddle:
    ld a, 152
    ld (hl+), a
    ld a, c
    ld (hl+), a
    add a, 8
    ld c, a
    ld a, 2
    ld (hl+), a
    xor a
    ld (hl+), a
    dec b
    jr nz, draw_paddle
    ld hl, MAP
    ld a, (LIVES)
    ld c, a
    ld b, LIVES_AT_START
    ld d, 1
    call draw_row
    ld hl, MAP + 4
    ld a, (SCORE)
    and 15
    ld c, a
    ld b, 16
    ld d, 2

draw_row:  ; b places from hl: tile d in the first c, tile 0 in the others
    ld a, c
    cp 0
    jr z, draw_nothing
    dec c
    ld a, d
draw_nothing:
    ld (hl+), a
    dec b
    jr nz, draw_row
    ret

tiles:  ; sixteen bytes each: for each row of pixels the low bits of the colours, then the high bits
    db 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00
    db 0x3C, 0x3C, 0x7E, 0x42, 0xFF, 0x81, 0xFF, 0x81, 0xFF, 0x81, 0xFF, 0x81, 0x7E, 0x42, 0x3C, 0x3C
    db 0xFF, 0xFF, 0xFF, 0xFF, 0x00, 0xFF, 0x00, 0xFF, 0x00, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x00, 0x00
    db 0xFF, 0x00, 0x55, 0x00, 0xAA, 0x00, 0x55, 0x00, 0xAA, 0x00, 0x55, 0x00, 0xAA, 0x00, 0xFF, 0x00
tiles_end:
